"""Which directories are the steps of one run, by their names and by what lies in them."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd_probe.errors import OpdProbeError
from opd_probe.models.checkpoints import Located, is_checkpoint, locate, recorded_step
from opd_probe.models.directories import subdirectories
from opd_probe.models.formats.hub_cache import repository, revisions
from opd_probe.models.steps import StepName, compile_pattern, named_step, step_name, step_series
from opd_probe.options.manifest import MANIFEST_NAME, read_manifest
from opd_probe.options.naming import path_parts
from opd_probe.texts import read_json, read_text, real_path

_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
"""What two steps of one run have in common: fields of config.json, or of the text part of it."""


class Steps:
    """The steps that lie in directories, each directory looked at once.

    Args:
        pattern: see :func:`opd_probe.models.steps.compile_pattern`; it wins over that of a directory's manifest. Names
            that it does not match are read without it.
    """

    def __init__(self, pattern: re.Pattern[str] | None = None) -> None:
        self.pattern = pattern
        self._below: dict[Path, dict[str, StepName]] = {}
        self._patterns: dict[Path, re.Pattern[str] | None] = {}

    def below(self, directory: Path) -> dict[str, StepName]:
        """The steps in a directory by their names; those that a name says by itself whether or not they are whole.

        Raises:
            InputError: the pattern's group matches no whole number.
        """
        if directory not in self._below:
            self._below[directory] = self._look(directory)
        return self._below[directory]

    def of(self, checkpoint: Path) -> StepName | None:
        """What the name of a checkpoint says; where it is a link, what the name that it leads to says.

        Raises:
            InputError: as :meth:`below`.
        """
        for path in (checkpoint, real_path(checkpoint)):
            said = self._alone(path)
            if said is None and any(map(str.isdigit, path.name)):
                said = self.below(path.parent).get(path.name)
            if said is not None:
                return said
        return None

    def _alone(self, path: Path) -> StepName | None:
        found = named_step(path.name, self._pattern_in(path.parent))
        return None if found is not None and found.bare and _holds_steps(path) else found

    def _pattern_in(self, directory: Path) -> re.Pattern[str] | None:
        manifest = directory / MANIFEST_NAME
        if self.pattern is not None or not manifest.is_file():
            return self.pattern
        if directory not in self._patterns:
            stated = None
            with contextlib.suppress(OpdProbeError):  # who uses the run says what is wrong with its manifest
                stated = read_manifest(manifest).step_pattern
            self._patterns[directory] = compile_pattern(stated, f"manifest {manifest}: step_pattern")
        return self._patterns[directory]

    def _look(self, directory: Path) -> dict[str, StepName]:
        children = {child.name: child for child in subdirectories(directory)}
        named = {name: said for name, child in children.items() if (said := self._alone(child)) is not None}
        likely = step_series(dict.fromkeys(children.keys() - named.keys()))
        kinds = {name: kind for name in sorted(likely) if (kind := _kind(children[name])) is not None}
        return named | _without_doubles(step_series(kinds), children)


def _kind(path: Path) -> tuple[Any, ...] | None:
    """What must be equal among steps of one run; None where there is no checkpoint, or a run with steps of its own."""
    try:
        found = locate(path)
        if not isinstance(found, Located) or repository(path) is not None or _holds_steps(path):
            return None
        home = found.format.home(found.path)
        config: Any = None if home is None else read_json(home / "config.json")
        base = found.format.base(found.path)
    except OpdProbeError:
        return None
    except (OSError, ValueError):
        return ()  # an adapter has no config.json; what is wrong with another is said when it is used
    config = config if isinstance(config, dict) else {}
    text = config.get("text_config")
    return (base, *((config | (text if isinstance(text, dict) else {})).get(field) for field in _SIZES))


def _holds_steps(path: Path) -> bool:
    return any(step_name(child.name) is not None and is_checkpoint(child) for child in subdirectories(path))


def _without_doubles(found: dict[str, StepName], children: Mapping[str, Path]) -> dict[str, StepName]:
    """Without what are runs of their own, since their trainers' records have the same step."""
    records: dict[str, list[int]] = defaultdict(list)
    for name, said in found.items():
        if (step := recorded_step(children[name])) is not None:
            records[said.stem].append(step)
    doubled = {stem for stem, steps in records.items() if len(set(steps)) < len(steps)}
    return {name: said for name, said in found.items() if said.stem not in doubled}


def cached_revisions(path: Path) -> dict[Path, tuple[tuple[str, ...], StepName | None]]:
    """Of a directory of the hub's cache, or a snapshot in it, each checkpoint with the components of its run's path and
    the step that its revision names. Empty for any other directory."""
    found = repository(path)
    if found is None:
        return {}
    name, place = found
    known = {snapshot: revision for snapshot, revision in revisions(place).items() if is_checkpoint(snapshot)}
    chosen = known if path == place else {path: known[path]} if path in known else {}
    result: dict[Path, tuple[tuple[str, ...], StepName | None]] = {}
    for snapshot, revision in chosen.items():
        said = step_name(revision)
        run = f"{name}@{revision}" if said is None else name
        result[snapshot] = ((*path_parts(place.parent), run), said)
    return result


def run_suffixes(names: Iterable[StepName]) -> dict[str, str]:
    """What the name of a run has behind that of its directory, by the stem of its steps: nothing for the largest."""
    counts = Counter(name.stem for name in names)
    ordered = sorted(counts, key=lambda stem: (-counts[stem], len(stem), stem))
    return {stem: stem if place else "" for place, stem in enumerate(ordered)}


def longer(parts: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    """The components of a run's path whose last one has something behind it."""
    return (*parts[:-1], f"{parts[-1]}/{suffix}") if suffix else parts


def unfinished(run: Path, steps: Mapping[Path, StepName]) -> dict[Path, str]:
    """Steps beyond the last one that was saved whole, which verl writes down after every save, and why they are left.

    None are when it is a record of another run, which has none of the steps.
    """
    record = run / "latest_checkpointed_iteration.txt"
    try:
        last = int(read_text(record))
    except (OSError, ValueError):
        return {}
    later = [path for path, name in steps.items() if name.step > last]
    reason = f"{record.name} has {last} as the last step that was saved whole; give the directory by itself to use it"
    return dict.fromkeys(later, reason) if len(later) < len(steps) else {}
