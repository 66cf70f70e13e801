"""From the arguments of ``--ckpts`` to runs with their checkpoints in order. Nothing is loaded."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.models.checkpoints import (
    Refused,
    accepted,
    is_checkpoint,
    locate,
    looks_like_hub_id,
    outermost,
    recorded_step,
    resolve_checkpoint,
)
from opd_probe.models.directories import closed, entries, is_directory, subdirectories
from opd_probe.models.served.endpoint import shown
from opd_probe.models.steps import StepName, Unit, compile_pattern, step_name
from opd_probe.options.manifest import MANIFEST_NAME, Manifest, read_manifest
from opd_probe.options.naming import path_parts, step_of_revision, unique_names, user_path
from opd_probe.runs.series import Steps, cached_revisions, longer, run_suffixes, unfinished
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint

ACCEPTED = (
    f"a checkpoint ({accepted()}), or a run directory that holds some, named by their steps (checkpoint-N, "
    "global_step_N, epoch_N, or alike but for a number; --step-pattern reads other names)"
)
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Run:
    """One distillation run: its name, its checkpoints in order of step, and what its manifest says.

    Attributes:
        checkpoints: ordered by step; the manifest's ``student`` is step 0 of a run given as a directory.
        manifest_path: where the manifest is, or would be; None for a run on the hub.
        unit: what the steps count, which names of checkpoints may say to be epochs.
        whole: whether it was given as a directory, and not by its checkpoints.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    manifest: Manifest | None = None
    manifest_path: Path | None = None
    unit: Unit = "step"
    whole: bool = True


@dataclass(slots=True)
class _Group:
    """What the arguments said about one run before it has a name."""

    parts: tuple[str, ...]
    directory: Path | None = None
    whole: bool = False
    members: dict[str, Path] = field(default_factory=dict)
    names: dict[str, StepName] = field(default_factory=dict)
    hub: list[Checkpoint] = field(default_factory=list)


def discover(arguments: Sequence[str], *, base: str | None = None, step_pattern: str | None = None) -> list[Run]:
    """The runs that the arguments of ``--ckpts`` name, ordered by name.

    Each argument is a checkpoint, a run directory, a pattern, or a hub id. Files, directories without a
    checkpoint and final weights beside step directories are skipped with a warning; duplicates count once.

    Args:
        base: the model under adapters; it wins over the manifests' ``base``.
        step_pattern: a regular expression whose group is the step in the name of a checkpoint's directory.

    Raises:
        MissingError: a path that does not exist, or a pattern that matches nothing.
        InputError: nothing usable is left (says what was found), or two checkpoints of one step in a run.
    """
    if not arguments:
        raise InputError(f"no checkpoints; give --ckpts with {ACCEPTED}")
    groups: dict[str, _Group] = {}
    files: list[Path] = []
    empty: list[str] = []
    steps = Steps(compile_pattern(step_pattern))
    for item in expand_paths(arguments):
        if isinstance(item, str):
            _add_hub(groups, item)
        elif not is_directory(item) and not is_checkpoint(item):  # one file may be a whole model
            files.append(item)
        elif (problem := _add_directory(groups, item, steps)) is not None:
            empty.append(problem)
    if not groups:
        raise InputError(_nothing_left(files, empty))
    for problem in empty:
        _warn(f"skipped {problem}")
    if files:
        _warn(f"skipped {_listed([str(file) for file in files])}: not a directory")
    return sorted(_name_runs(list(groups.values()), base), key=lambda run: run.name)


def expand_paths(arguments: Sequence[str], option: str = "--ckpts", *, hub: bool = True) -> list[Path | str]:
    """Paths as they were given or matched, and, where ``hub`` allows them, hub ids as text.

    Raises:
        MissingError: a path that does not exist, or a pattern that matches nothing.
    """
    items: list[Path | str] = []
    for argument in arguments:
        path = user_path(argument)
        if not argument:
            raise MissingError(f"{option}: an empty path; expected {ACCEPTED}")
        if path.exists():
            items.append(path)
        elif glob.has_magic(argument):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                raise MissingError(f"{option} {argument}: the pattern matches nothing; expected {ACCEPTED}")
            items.extend(Path(match) for match in matches)
        elif hub and is_hub_id(argument):
            items.append(argument)
        else:
            beside = ", or a hub id (org/name)" if hub else ""
            raise MissingError(f"{option} {shown(argument)}: no such path; expected {ACCEPTED}{beside}")
    return items


def is_hub_id(value: str) -> bool:
    """Whether a value that is no existing path should be looked up on the hub.

    ``runs/typo`` has the form of a hub id too; when its first part is a local directory, a path was meant.
    """
    return looks_like_hub_id(value) and not Path(value.split("/")[0]).exists()


def _add_hub(groups: dict[str, _Group], hub_id: str) -> None:
    checkpoint = resolve_checkpoint(hub_id)
    if checkpoint.step is None:
        checkpoint = replace(checkpoint, step=step_of_revision(checkpoint.revision))
    group = groups.setdefault(f"hub:{checkpoint.path}", _Group(parts=(checkpoint.path,)))
    if checkpoint not in group.hub:
        group.hub.append(checkpoint)


def _add_directory(groups: dict[str, _Group], path: Path, steps: Steps) -> str | None:
    """Take in one existing directory, or a file that is a checkpoint; returns what was found where there is none."""
    absolute = Path(os.path.normpath(path.absolute()))
    if cached := cached_revisions(absolute):
        for snapshot, (parts, said) in cached.items():
            group = groups.setdefault("/".join(parts), _Group(parts=parts, directory=snapshot.parent))
            _add_member(group, snapshot, said)
        return None
    children = subdirectories(absolute)
    named = steps.below(absolute)
    usable = {child: named[child.name] for child in children if child.name in named and is_checkpoint(child)}
    if usable:
        late = unfinished(absolute, usable)
        group = _group(groups, absolute)
        group.whole = True
        resolved = {real_path(child) for child in usable}
        for child, name in usable.items():
            if child in late:
                _warn(f"skipped {child}: {late[child]}")
            else:
                _add_member(group, child, name)
        for child in children:
            if child.name in named and child not in usable:
                _warn(f"skipped {describe(child)}")
        if is_checkpoint(absolute):
            _warn(f"skipped the final weights in {path}: its step directories are used")
        for child in children:
            if child.name not in named and real_path(child) not in resolved and is_checkpoint(child):
                _warn(f"skipped {path / child.name}: final weights beside step directories")
        return None
    if is_checkpoint(absolute):
        absolute = outermost(absolute)
        _add_member(_group(groups, absolute.parent), absolute, steps.of(absolute))
        return None
    return describe(path)


def _group(groups: dict[str, _Group], directory: Path) -> _Group:
    key = str(real_path(directory))
    return groups.setdefault(key, _Group(parts=path_parts(directory), directory=directory))


def _add_member(group: _Group, checkpoint: Path, name: StepName | None) -> None:
    key = str(real_path(checkpoint))
    if key not in group.members or name is not None:  # a link's name may hide the step
        group.members[key] = checkpoint
    if name is not None:
        group.names[key] = name


def describe(path: Path) -> str:
    """One line on a directory without a checkpoint: what is in it, and what would be accepted."""
    if (reason := closed(path)) is not None:
        return f"{path}: {reason}"
    for place in (path, *entries(path)):
        if isinstance(found := locate(place), Refused):
            return f"{found.path}: {found.reason}"
        if step_name(place.name) is not None and is_directory(place) and (reason := closed(place)) is not None:
            return f"{place}: {reason}"
    runs = [child.name for child in subdirectories(path) if _holds_checkpoints(child)]
    if runs:
        return f"{path}: no checkpoint in it, but in {_listed(runs)} below it; give {path}/*"
    names = [f"{child.name}/" if is_directory(child) else child.name for child in entries(path)]
    return f"{path}: no checkpoint in it (found {_listed(names) if names else 'nothing'}); expected {ACCEPTED}"


def _holds_checkpoints(directory: Path) -> bool:
    if is_checkpoint(directory):
        return True
    return any(step_name(child.name) is not None and is_checkpoint(child) for child in subdirectories(directory))


def _nothing_left(files: Sequence[Path], empty: Sequence[str]) -> str:
    if empty:
        more = f" (and {len(empty) - 1} more directories without one)" if len(empty) > 1 else ""
        return f"--ckpts {empty[0]}{more}"
    return f"--ckpts {_listed([str(file) for file in files])}: not a directory; expected {ACCEPTED}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _name_runs(groups: Sequence[_Group], base: str | None) -> list[Run]:
    """Split off what shares a directory by chance, then name each run and read its manifest."""
    parted = [part for group in groups for part in _part(group)]
    names = unique_names({str(index): group.parts for index, group in enumerate(parted)})
    return [_make_run(names[str(index)], group, base) for index, group in enumerate(parted)]


def _part(group: _Group) -> list[_Group]:
    """Drop final weights beside step directories; models that only lie side by side are runs of their own."""
    others = {key: path for key, path in group.members.items() if key not in group.names}
    if not group.names:
        return [group] if len(others) <= 1 else [_alone(group, key, path) for key, path in others.items()]
    suffixes = run_suffixes(group.names.values())
    plain = any(name.plain for name in group.names.values())
    heads = tuple(stem.split("N")[0].rstrip("-_. ") for stem in suffixes)
    apart = []
    for key, path in others.items():
        if plain or path.name.startswith(heads):
            _warn(f"skipped {path}: final weights beside step directories")
        else:
            apart.append(_alone(group, key, path))
    if apart:
        suffixes = {stem: stem for stem in suffixes}
    runs = []
    for stem, suffix in suffixes.items():
        keys = [key for key, name in group.names.items() if name.stem == stem]
        members, names = {key: group.members[key] for key in keys}, {key: group.names[key] for key in keys}
        runs.append(replace(group, parts=longer(group.parts, suffix), members=members, names=names))
    return [*runs, *apart]


def _alone(group: _Group, key: str, path: Path) -> _Group:
    return _Group(parts=longer(group.parts, path.name), directory=path, members={key: path})


def _make_run(name: str, group: _Group, base: str | None) -> Run:
    manifest, manifest_path = _find_manifest(group)
    manifest_base, student = (manifest.base, manifest.student) if manifest else (None, None)
    checkpoints = [replace(checkpoint, run=name) for checkpoint in group.hub]
    units = set()
    for key, path in group.members.items():
        found = resolve_checkpoint(path, run=name, base=base or manifest_base, student=student)
        step, counted = step_and_unit(path, group.names.get(key))
        checkpoints.append(replace(found, step=found.step if step is None else step))
        units.add(counted)
    _refuse_equal_steps(name, checkpoints)
    if manifest and manifest.student and group.whole and all(c.step != 0 for c in checkpoints):
        checkpoints.append(replace(resolve_checkpoint(manifest.student, run=name), step=0))
    ordered = sorted(checkpoints, key=lambda c: (c.step is not None, c.step or 0, c.path))
    unit: Unit = "epoch" if units == {"epoch"} else "step"
    if unit == "epoch":
        _warn(f"run {name}: its checkpoints are named by epochs, which stand wherever steps stand")
    return Run(name, tuple(ordered), manifest, manifest_path, unit, group.whole)


def step_and_unit(path: Path, name: StepName | None) -> tuple[int | None, Unit]:
    """The step of a checkpoint by a given pattern, else by its trainer's record, else by its name, and what it counts.

    Raises:
        InputError: a record that cannot be read.
    """
    if name is None or not name.asked:
        recorded = recorded_step(path)
        if recorded is not None:
            return recorded, "step"
    return (None, "step") if name is None else (name.step, name.unit)


def _find_manifest(group: _Group) -> tuple[Manifest | None, Path | None]:
    """The run directory's manifest; a model that stands alone may carry its own."""
    if group.directory is None:
        return None, None
    places = [group.directory / MANIFEST_NAME]
    if len(group.members) == 1:
        places.append(next(iter(group.members.values())) / MANIFEST_NAME)
    for place in places:
        if place.is_file():
            return read_manifest(place), place
    return None, places[0]


def _refuse_equal_steps(name: str, checkpoints: Sequence[Checkpoint]) -> None:
    seen: dict[int | None, Checkpoint] = {}
    for checkpoint in checkpoints:
        if checkpoint.step in seen:
            raise InputError(
                f"run {name}: {seen[checkpoint.step].path} and {checkpoint.path} are both of step "
                f"{'unknown' if checkpoint.step is None else checkpoint.step}; leave one of them out"
            )
        seen[checkpoint.step] = checkpoint


def _warn(message: str) -> None:
    warnings.warn(message, OpdProbeWarning, stacklevel=3)


def find_checkpoints(*paths: str | Path, base: str | None = None, step_pattern: str | None = None) -> list[Checkpoint]:
    """The checkpoints that ``--ckpts`` would take from these paths, ordered by run and step. Nothing is loaded.

    Args:
        paths: checkpoints or run directories of any format (see the table in docs/formats.md), patterns, or hub ids.
        base: the model under adapters, or the one with the configuration of weights that were saved without.
        step_pattern: a regular expression whose group is the step in the name of a checkpoint's directory, for
            names that do not say it in a way that is known.

    Returns:
        For :func:`opd_probe.replay`; what was skipped is said in an :class:`OpdProbeWarning`.

    Raises:
        MissingError: a path that does not exist, or a pattern that matches nothing.
        InputError: no checkpoint that can be used, or two of one step in a run.
    """
    runs = discover([str(path) for path in paths], base=base, step_pattern=step_pattern)
    return [checkpoint for run in runs for checkpoint in run.checkpoints]
