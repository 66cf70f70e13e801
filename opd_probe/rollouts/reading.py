"""Files and directories of rollouts: recognised by their fields, read as one set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, MissingError
from opd_probe.models.steps import compile_pattern
from opd_probe.rollouts.rows import Row, absent, read_rows
from opd_probe.rollouts.sampling import sampling_of
from opd_probe.rollouts.sources import Skipped, Source, Where, accepted, recognise, source_named
from opd_probe.texts import real_path
from opd_probe.types import Rollout

_SUFFIXES = (".jsonl", ".parquet", ".ndjson", ".pt", ".eval")
"""Of files that are looked at in a directory; one named is read whatever it is called."""


@dataclass(frozen=True, slots=True)
class RolloutSet:
    """Rollouts with what there is to say of the files that they come from.

    Attributes:
        kind: the name of their :class:`Source`.
        files: those read, in order.
        skipped: how many entries are no rollouts, by reason.
        ignored: files of a directory that hold no rollouts, or none of training.
        repeated: steps whose samples are those of the step before.
    """

    rollouts: list[Rollout]
    kind: str
    files: tuple[Path, ...]
    skipped: Mapping[str, int]
    ignored: tuple[Path, ...] = ()
    repeated: tuple[int, ...] = ()


def read_rollout_set(
    paths: Sequence[str | Path],
    kind: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    besides: Path | None = None,
    step_pattern: str | None = None,
) -> RolloutSet:
    """Read rollout files, and those in directories, as one set.

    Args:
        kind: the name of a kind of file; None: recognised by the fields of each file's first row.
        progress: called with (files done, files in all).
        besides: a file that is not read though it lies in a directory that is.
        step_pattern: how the step is read from the name of a file or its folder; None: as those of checkpoints are.

    Raises:
        MissingError, InputError: names the file, the line or row, and the field; or there is no rollout, rollouts of
            two kinds, or sampled ids beside text.
    """
    forced = None if kind is None else source_named(kind)
    pattern = compile_pattern(step_pattern)
    found = [file for path in paths for file in _files(Path(path), besides)]
    if not found:
        raise InputError(
            f"rollouts {paths[0]}: no file with rollouts in it or one folder below; expected {', '.join(_SUFFIXES)}"
        )
    rollouts: list[tuple[str, Rollout]] = []
    skipped: Counter[str] = Counter()
    read: list[tuple[Path, Source]] = []
    ignored: list[Path] = []
    for done, ((file, named), prefix) in enumerate(zip(found, _prefixes([file for file, _ in found]), strict=True)):
        if progress is not None:
            progress(done, len(found))
        opened = _opened(file, named or len(found) == 1, forced)
        if opened is None:
            ignored.append(file)
            continue
        read.append((file, opened[0]))
        _refuse_two_kinds(read[0], read[-1])
        places: list[str] = []
        held: list[Rollout] = []
        for place, entry in _entries(*opened, file, pattern):
            if isinstance(entry, Skipped):
                skipped[entry.reason] += 1
            else:
                places.append(place)
                held.append(replace(entry, id=prefix + entry.id))
        rollouts += zip(places, opened[0].together(held), strict=True)
    if not read:
        raise InputError(f"rollouts {paths[0]}: none of its {len(found)} files is recognised; expected {accepted()}")
    rollouts, evaluated = _of_training(rollouts, frozenset().union(*(kind.evaluated(file) for file, kind in read)))
    if evaluated:
        skipped["of steps with an evaluation, whose samples stand in their place or among them"] += evaluated
    if not rollouts:
        raise InputError(f"rollouts {read[0][0]}: none left, out of {counted(skipped)}")
    checked = checked_set(rollouts, f"rollouts {', '.join(map(str, paths))}")
    repeated = _repeated(checked) if read[0][1].logs_again else ()
    return RolloutSet(checked, read[0][1].name, tuple(file for file, _ in read), skipped, tuple(ignored), repeated)


def _opened(file: Path, wanted: bool, forced: Source | None) -> tuple[Source, Iterator[Row]] | None:
    """The kind and the rows of a file; None for one not ``wanted`` by name that holds no rollouts of training."""
    if not wanted and file.suffix == ".pt" and file.name.startswith("eval_"):
        return None  # slime's evaluation samples lie beside those of training
    rows = _without_null(read_rows(file, "rollouts"))
    first = next(rows)
    kind = forced or recognise(first[1])
    if kind is not None and (wanted or kind.fits(first[1])):
        return kind, chain([first], rows)
    if not wanted:
        return None
    held = ", ".join(list(map(str, first[1]))[:12]) or "no field"
    raise InputError(f"rollouts {file}: not recognised by its fields ({held}); expected one of {accepted()}")


def _refuse_two_kinds(first: tuple[Path, Source], other: tuple[Path, Source]) -> None:
    if first[1] is not other[1]:
        raise InputError(
            f"rollouts {other[0]}: of the kind {other[1].name}, while {first[0]} is {first[1].name}; kinds are not "
            "pooled, so read them one by one"
        )


def checked_set(rollouts: Iterable[tuple[str, Rollout]], what: str) -> list[Rollout]:
    """Rollouts that may stand side by side, each given with its place.

    Raises:
        InputError: two of one id, or sampled ids beside text.
    """
    seen: dict[str, str] = {}
    kept = []
    for place, rollout in rollouts:
        if rollout.id in seen:
            raise InputError(f"{place}: id {rollout.id!r} stands already at {seen[rollout.id]}; ids must be unique")
        seen[rollout.id] = place
        told = rollout.sampling or sampling_of(rollout.extra)
        kept.append(rollout if told == rollout.sampling else replace(rollout, sampling=told))
    if len({rollout.token_source for rollout in kept}) > 1:
        raise InputError(
            f"{what}: holds sampled ids and text to be re-tokenised, which are never pooled; make two files of it"
        )
    return kept


def remarks(found: RolloutSet) -> list[str]:
    """What a user should know of a set before using it, a line each."""
    lines = []
    name = f"rollouts {found.files[0] if len(found.files) == 1 else found.files[0].parent}"
    if found.skipped:
        left_out = sum(found.skipped.values())
        lines.append(f"{name}: left out {left_out} of {left_out + len(found.rollouts)} ({counted(found.skipped)})")
    if found.ignored:
        names = ", ".join(file.name for file in found.ignored)
        lines.append(f"{name}: left out, since they hold no rollouts of training: {names}")
    if found.repeated:
        steps = ", ".join(map(str, found.repeated))
        lines.append(f"{name}: the samples of step {steps} are those of the step before, trained on again")
    return lines


def counted(skipped: Mapping[str, int]) -> str:
    """Reasons with how often each was one."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _files(path: Path, besides: Path | None) -> list[tuple[Path, bool]]:
    """The files that a path means, each with whether it was named itself."""
    if path.is_file():
        return [(path, True)]
    if not path.is_dir():
        raise MissingError(f"rollouts {path}: no such file or directory")
    for pattern in ("*", "*/*"):  # prime-rl puts each step into a folder of its own
        inside = [file for file in path.glob(pattern) if _may_hold_rollouts(file) and not _same(file, besides)]
        if inside:
            return [(file, False) for file in sorted(inside, key=_natural)]
    return []


def _may_hold_rollouts(file: Path) -> bool:
    """By its name; torch files without a number are a trainer's optimiser and the like, those of ranks its shards."""
    known = file.suffix in _SUFFIXES and not file.name.startswith(".")
    return known and (file.suffix != ".pt" or (file.stem[-1:].isdecimal() and "_world_size_" not in file.stem))


def _same(file: Path, other: Path | None) -> bool:
    return other is not None and real_path(file) == real_path(other)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in names by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _prefixes(files: Sequence[Path]) -> list[str]:
    """What tells the ids of several files apart: as much of each file's path as differs; "" for one alone."""
    if len(files) == 1:
        return [""]
    parts = [real_path(file).with_suffix("").parts for file in files]
    common = 0
    while len({part[: common + 1] for part in parts}) == 1 and all(len(part) > common + 1 for part in parts):
        common += 1
    return ["/".join(part[common:]) + "/" for part in parts]


def _without_null(rows: Iterable[Row]) -> Iterator[Row]:
    for place, row in rows:
        yield place, {name: value for name, value in row.items() if not absent(value)}


def _entries(
    source: Source, rows: Iterable[Row], file: Path, pattern: re.Pattern[str] | None
) -> Iterator[tuple[str, Rollout | Skipped]]:
    step, reason = source.step_of(file, pattern), source.left_out(file)
    seen: set[Any] = set()
    for number, (place, row) in enumerate(rows):
        for name in source.needs:
            if name not in row:
                raise InputError(f"{place}: no {name}; expected {source.fields}, as {source.name} writes")
        again = False
        if source.same is not None:
            key = source.same(row)
            again = key in seen
            seen.add(key)
        for entry in source.rollouts(Where(place, str(number), step), row):
            if isinstance(entry, Rollout) and (reason or again):
                entry = Skipped(reason or "of responses that are there already")
            yield place, entry


def _of_training(
    rollouts: list[tuple[str, Rollout]], evaluated: frozenset[int]
) -> tuple[list[tuple[str, Rollout]], int]:
    """The rollouts of steps without an evaluation, and how many others there were: those of steps with one, and of
    later steps at which the same samples were logged again."""
    if not evaluated:
        return rollouts, 0
    left = set(evaluated)
    by_step = _by_step(rollout for _, rollout in rollouts)
    for before, step in pairwise(sorted(by_step)):
        if before in left and by_step[before] == by_step[step]:
            left.add(step)
    kept = [(place, rollout) for place, rollout in rollouts if rollout.step not in left]
    return kept, len(rollouts) - len(kept)


def _by_step(rollouts: Iterable[Rollout]) -> dict[int, Counter[str]]:
    """By step, its prompts and responses."""
    found: dict[int, Counter[str]] = {}
    for rollout in rollouts:
        if rollout.step is not None:
            key = repr((rollout.prompt, rollout.extra.get("messages"), rollout.response))
            found.setdefault(rollout.step, Counter())[key] += 1
    return found


def _repeated(rollouts: Iterable[Rollout]) -> tuple[int, ...]:
    """Steps with just the prompts and responses of the step before."""
    by_step = _by_step(rollouts)
    steps = sorted(by_step)
    return tuple(step for before, step in pairwise(steps) if by_step[before] == by_step[step])
