"""``opd-probe ckpts``: what is below a path, what of it can be used, and why the rest cannot. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, MissingError, OpdProbeError
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
    resolve_checkpoint,
    step_of_name,
)
from opd_probe.models.digests import tokenizer_files_digest
from opd_probe.models.directories import closed, entries, is_directory, subdirectories
from opd_probe.models.formats.headers import read_json_object, stored_dtype
from opd_probe.models.hub import home_of
from opd_probe.options.manifest import MANIFEST_NAME, Manifest, read_manifest
from opd_probe.options.naming import path_parts, unique_names
from opd_probe.runs.discovery import expand_paths, unfinished
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
        format: the name of the checkpoint format.
        dtype: of the stored weights, that of most values where they differ.
        parameters: stored values, those of a base model not among them; tied weights count as often as they are stored.
        bytes: of the files that hold the weights (of a torch distributed checkpoint, optimiser state included).
        base: the model that an adapter changes, or that has the configuration.
        tokenizer: whether a tokenizer lies with the checkpoint.
        path: the directory that stands for it.
        refused: why it cannot be used, in one line; None: it can.
    """

    run: str
    step: int | None
    format: str | None
    dtype: str | None
    parameters: int | None
    bytes: int | None
    base: str | None
    tokenizer: bool | None
    path: str
    refused: str | None = None


def inventory(paths: Sequence[str], *, base: str | None = None) -> list[dict[str, Any]]:
    """A row for every checkpoint below the paths, ordered by run and step; the values are JSON types.

    Args:
        paths: directories, or patterns.
        base: the model under adapters, or the one with the configuration of weights that were saved without.

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
    runs = {place: place.parent if step_of_name(place.name) is not None else place for place in places}
    names = unique_names({str(run): path_parts(run) for run in runs.values()})
    late: dict[Path, str] = {}
    for run in set(runs.values()):
        late |= unfinished(run, [place for place in places if runs[place] == run])
    entries = [
        _refusal(place, found, names[str(runs[place])])
        if not isinstance(found := late.get(place) or known, Located)
        else _entry(place, found, names[str(runs[place])], base)
        for place, known in places.items()
    ]
    return [asdict(e) for e in sorted(entries, key=lambda e: (e.run, e.step is not None, e.step or 0, e.path))]


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
    if (place := path.resolve()) in seen:
        return
    seen.add(place)
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
        children = [child for child in children if found.path == path and step_of_name(child.name) is not None]
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
            str(place),
            found.removeprefix(f"checkpoint {place}: ").replace(f"{place}/", ""),
        )
    where = "" if found.path == place else f"{os.path.relpath(found.path, place)}: "
    return Entry(
        run, step_of_name(place.name), found.format, None, None, None, None, None, str(place), where + found.reason
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
