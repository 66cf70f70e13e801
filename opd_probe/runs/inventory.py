"""``opd-probe ckpts``: what is below a path, what of it can be used, and why the rest cannot. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, MissingError, OpdProbeError, warn
from opd_probe.models.checkpoints import (
    Located,
    Refused,
    accepted,
    describe,
    format_of,
    headers_of,
    locate,
    looks_like_hub_id,
    outermost,
    recorded_step,
    resolve_checkpoint,
)
from opd_probe.models.digests import tokenizer_files_digest
from opd_probe.models.directories import closed, entries, is_directory, subdirectories
from opd_probe.models.formats.headers import read_json_object, stored_dtype
from opd_probe.models.hub import home_of
from opd_probe.models.splitting import tokenizers_differ
from opd_probe.models.steps import StepName, compile_pattern, step_name, step_of_name
from opd_probe.options.manifest import MANIFEST_NAME, Manifest, read_manifest
from opd_probe.options.naming import path_parts, unique_names
from opd_probe.runs.discovery import expand_paths, step_and_unit
from opd_probe.runs.series import Steps, cached_revisions, longer, run_suffixes, unfinished
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint

_DEEPEST = 6
"""Levels of directories below a path that are looked into."""


_TRAINERS_STEPS = ("checkpoint-", "global_step_")
"""Names of steps that hold a checkpoint or what is left of one; rollouts and logs lie in ``step_N``, too."""

_Found = Located | Refused | str
"""A checkpoint, one that its format refuses, or why it cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint that was found, or a directory that a trainer wrote and that cannot be used.

    Attributes:
        run, step: as ``--ckpts`` would have them.
        unit: what the step counts, ``step`` or ``epoch``; None where there is no step.
        read: where the step was read, in words.
        format: the name of the checkpoint format.
        dtype: of the stored weights, that of most values where they differ.
        parameters: stored values, those of a base model not among them; tied weights count as often as they are stored.
        bytes: of the files that hold the weights (of a torch distributed checkpoint, optimiser state included).
        base: the model that an adapter changes, or that has the configuration.
        tokenizer: whether a tokenizer lies with the checkpoint.
        path: the directory that stands for it.
        refused: why it cannot be used, in one line; None: it can.
        differs: what of its tokenizer makes other ids of the same text than that of the run's first checkpoint, in
            words; None: nothing.
    """

    run: str
    step: int | None
    unit: str | None
    read: str | None
    format: str | None
    dtype: str | None
    parameters: int | None
    bytes: int | None
    base: str | None
    tokenizer: bool | None
    path: str
    refused: str | None = None
    differs: str | None = None


def inventory(
    paths: Sequence[str], *, base: str | None = None, step_pattern: str | None = None
) -> list[dict[str, Any]]:
    """A row for every checkpoint below the paths, ordered by run and step; the values are JSON types.

    Args:
        paths: directories, or patterns.
        base: the model under adapters, or the one with the configuration of weights that were saved without.
        step_pattern: see :func:`opd_probe.runs.discovery.discover`.

    Raises:
        MissingError: a path that does not exist, or a pattern that matches nothing.
        InputError: there is nothing of a trainer below the paths.
    """
    places: dict[Path, _Found] = {}
    seen: set[Path] = set()
    for item in expand_paths(paths, "ckpts", hub=False):
        start = Path(os.path.normpath(Path(item).absolute()))
        if (reason := closed(start)) is not None:
            places[start] = reason
        places.update(_walk(start, _DEEPEST, seen))
    if not places:
        raise InputError(f"ckpts {' '.join(paths)}: no checkpoint there or below; expected {accepted()}")
    said = _said(places, Steps(compile_pattern(step_pattern)))
    names = unique_names({"/".join(parts): parts for parts, _ in said.values()})
    late: dict[Path, str] = {}
    for directory in {place.parent for place in places}:
        steps = {place: step for place, (_, step) in said.items() if place.parent == directory and step is not None}
        late |= unfinished(directory, steps)
    entries = []
    for place, known in places.items():
        run, step = names["/".join(said[place][0])], said[place][1]
        found = late.get(place) or known
        entry = _entry(place, found, run, base) if isinstance(found, Located) else _refusal(place, found, run)
        entries.append(_with_step(entry, place, step))
    ordered = sorted(entries, key=lambda e: (e.run, e.step is not None, e.step or 0, e.path))
    return [asdict(entry) for entry in _compared(ordered, base)]


def _said(places: Mapping[Path, _Found], steps: Steps) -> dict[Path, tuple[tuple[str, ...], StepName | None]]:
    """The run of each place, as the components of a path, and what its name says of the step."""
    read = {place: steps.below(place.parent).get(place.name) for place in places}
    suffixes: dict[Path, dict[str, str]] = {}
    for directory in {place.parent for place in places}:
        below = {place: step for place, step in read.items() if place.parent == directory and step is not None}
        usable = [step for place, step in below.items() if isinstance(places[place], Located)]
        suffixes[directory] = run_suffixes(usable or below.values())
    runs = {}
    for place, step in read.items():
        if place in (cached := cached_revisions(place)):
            runs[place] = cached[place]
            continue
        suffix = "" if step is None else suffixes[place.parent].get(step.stem, "")
        runs[place] = (path_parts(place) if step is None else longer(path_parts(place.parent), suffix), step)
    return runs


def _with_step(entry: Entry, place: Path, name: StepName | None) -> Entry:
    """The step as ``--ckpts`` would have it, and how it was read."""
    try:
        step, unit = step_and_unit(place, name)
    except OpdProbeError:  # a record that cannot be read, which the entry says
        return entry
    if step is None:
        return entry
    recorded = name is None or (not name.asked and recorded_step(place) is not None)
    return replace(
        entry, step=step, unit=unit, read="its trainer's record" if recorded or name is None else name.source
    )


def _compared(entries: Sequence[Entry], base: str | None) -> list[Entry]:
    """With what the tokenizers of each run's checkpoints differ in."""
    runs: dict[str, dict[Checkpoint, Entry]] = {}
    for entry in entries:
        if entry.refused is None and entry.tokenizer:
            manifest = _manifest_of(Path(entry.path))
            checkpoint = resolve_checkpoint(entry.path, base=base or manifest.base, student=manifest.student)
            runs.setdefault(entry.run, {})[checkpoint] = entry
    parts: dict[str, str] = {}
    for run, known in runs.items():
        if found := tokenizers_differ(known):
            steps = ", ".join("unknown" if known[one].step is None else str(known[one].step) for one, _ in found)
            stages = ", ".join(dict.fromkeys(stage for _, differing in found for stage in differing))
            unit = known[found[0][0]].unit or "step"
            warn(f"run {run}: {unit} {steps} differ from its first checkpoint in their {stages}; see --template")
        parts |= {known[one].path: ", ".join(differing) for one, differing in found}
    return [replace(entry, differs=parts.get(entry.path)) for entry in entries]


def check_usable(rows: Sequence[Mapping[str, Any]]) -> None:
    """Whether any row is of a checkpoint that can be used.

    Raises:
        InputError: none is; names the first.
    """
    if all(row["refused"] is not None for row in rows):
        raise InputError(
            f"ckpts: none of {len(rows)} can be used; the first is {rows[0]['path']}: {rows[0]['refused']}"
        )


def _walk(path: Path, depth: int, seen: set[Path]) -> Iterator[tuple[Path, _Found]]:
    """What there is at a directory, and below it unless that is a checkpoint; step directories in one are looked at.

    Args:
        seen: directories that were looked at, links resolved, so that each is listed once; grows.
    """
    if (place := real_path(path)) in seen:
        return
    seen.add(place)
    if cached := cached_revisions(path):
        for snapshot in cached:
            seen.add(real_path(snapshot))
            yield snapshot, locate(snapshot) or describe(snapshot)
        return
    try:
        found: _Found | None = locate(path)
    except OpdProbeError as error:
        found = str(error)
    if found is not None:
        yield outermost(path) if isinstance(found, (Located, Refused)) else path, found
    if depth == 0 or isinstance(found, (str, Refused)):
        return
    children = [child for child in subdirectories(path) if not child.name.startswith(".")]
    if isinstance(found, Located):
        run = found.path == path and step_name(path.name) is None  # in a step lies at most a trainer's own state
        children = [child for child in children if run and step_name(child.name) is not None]
    below = False
    for file in entries(path) if found is None else ():  # files are checkpoints too, beside directories of others
        if not is_directory(file) and isinstance(one := locate(file), Located):
            below = True
            yield file, one
    for child in sorted(children, key=Path.is_symlink):  # a directory is listed under its own name
        for entry in _walk(child, depth - 1, seen):
            below = True
            yield entry
    if found is None and not below and path.name.startswith(_TRAINERS_STEPS) and step_of_name(path.name) is not None:
        yield path, describe(path)


def _refusal(place: Path, found: Refused | str, run: str) -> Entry:
    if isinstance(found, str):
        return Entry(
            run,
            step_of_name(place.name),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            str(place),
            found.removeprefix(f"checkpoint {place}: ").replace(f"{place}/", ""),
        )
    where = "" if found.path == place else f"{os.path.relpath(found.path, place)}: "
    return Entry(
        run,
        step_of_name(place.name),
        None,
        None,
        found.format,
        None,
        None,
        None,
        None,
        None,
        str(place),
        where + found.reason,
    )


def _entry(place: Path, found: Located, run: str, base: str | None) -> Entry:
    """A checkpoint with what its headers say; or, where something is wrong with it, what."""
    try:
        manifest = _manifest_of(place)
        checkpoint = resolve_checkpoint(place, run=run, base=base or manifest.base, student=manifest.student)
        headers = headers_of(checkpoint)
        _check_base(checkpoint)
        config = home_of(checkpoint) / "config.json"
        if config.is_file():  # an adapter has none of its own
            read_json_object(config)
        size = sum(file.stat().st_size for file in found.format.weight_files(found.path))
        tokenizer = tokenizer_files_digest(checkpoint) is not None
    except OpdProbeError as error:
        return replace(_refusal(place, str(error), run), format=found.format.name)
    except OSError as error:  # it vanishes while it is looked at, as old checkpoints of a run do
        reason = f"{error.filename}: cannot be read ({error.strerror})"
        return replace(_refusal(place, reason, run), format=found.format.name)
    return Entry(
        run,
        checkpoint.step,
        None,
        None,
        checkpoint.format,
        stored_dtype(headers),
        sum(header.values for header in headers.values()),
        size,
        checkpoint.base,
        tokenizer,
        str(place),
    )


def _manifest_of(place: Path) -> Manifest:
    files = (directory / MANIFEST_NAME for directory in (place.parent, place))
    return next((read_manifest(file) for file in files if file.is_file()), Manifest())


def _check_base(checkpoint: Checkpoint) -> None:
    base = checkpoint.base
    if format_of(checkpoint).adapter(Path(checkpoint.path)):
        if base is None:
            raise MissingError("an adapter that names no base model; name it with --base MODEL")
        if not Path(base).exists() and not looks_like_hub_id(base):
            raise MissingError(f"its base model {base} is not there; name it with --base MODEL")
