"""What a source of rollouts is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_probe.models.steps import step_of_place
from opd_probe.texts import parse_json, read_text, real_path
from opd_probe.types import Rollout


@dataclass(frozen=True, slots=True)
class Where:
    """Where a row stands, and what its place says of it.

    Attributes:
        place: for error messages.
        name: unique within the file; the id of a rollout that has none, and the start of those of several.
        step: the step that the file's path says, see :attr:`Source.step_of`.
    """

    place: str
    name: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of a row that is no rollout, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of rollout file.

    Attributes:
        name: as ``--kind`` takes it and reports say it.
        fields: what its rows hold, for error messages.
        needs: fields without which a row is not of this kind.
        rollouts: what a row, without null fields and with all that are needed, becomes. Raises InputError, naming the
            place and the field.
        recognises: what else tells a file's first row from that of other kinds.
        step_of: the step that a file's path says, by ``--step-pattern`` where that is given; for rows that say none.
        same: what is equal in rows of one file that hold the same responses; None: there are no such rows.
        logs_again: whether the trainer logs samples again at each later step that trains on them.
        left_out: why none of a file's rollouts is one, as what lies beside it says; None: they are.
        evaluated: steps at which what lies beside a file says that the trainer evaluated, and which kind of rollouts
            were logged in the same place unmarked.
        together: what the rollouts of a file become once all are known, in their order.
        steps_are: which checkpoint sampled the rollouts of a step, where it is not the one of that step.
    """

    name: str
    fields: str
    needs: tuple[str, ...]
    rollouts: Callable[[Where, Mapping[str, Any]], Iterable[Rollout | Skipped]]
    recognises: Callable[[Mapping[str, Any]], bool] = lambda _: True
    step_of: Callable[[Path, re.Pattern[str] | None], int | None] = lambda *_: None
    same: Callable[[Mapping[str, Any]], Any] | None = None
    logs_again: bool = False
    left_out: Callable[[Path], str | None] = lambda _: None
    evaluated: Callable[[Path], frozenset[int]] = lambda _: frozenset()
    together: Callable[[Sequence[Rollout]], Sequence[Rollout]] = list
    steps_are: str = ""

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a file that begins with this row may be of this kind."""
        return all(name in row for name in self.needs) and self.recognises(row)


NEXT_STEP = "rollouts of step S + 1 are the samples of checkpoint S: replay them with --step-offset 1"
"""Of trainers that count the update that a batch goes into."""


def step_of_file(path: Path, pattern: re.Pattern[str] | None = None) -> int | None:
    """The step that a file's name says, which may be a number at its end alone; then that of its folder.

    Args:
        pattern: of ``--step-pattern``.
    """
    said = step_of_place(path.stem, pattern)
    if said is not None:
        return said
    found = re.search(r"(\d+)$", path.stem)
    return int(found.group(1)) if found else step_of_folder(path, pattern)


def step_of_folder(path: Path, pattern: re.Pattern[str] | None = None) -> int | None:
    """The step that the name of a file's folder says, read as the names of checkpoints are.

    Args:
        pattern: of ``--step-pattern``.
    """
    return step_of_place(real_path(path).parent.name, pattern)


def evaluated_beside(folder: Path) -> frozenset[int]:
    """Steps with an evaluation in the logs of a trainer's output folder: its last ``trainer_state.json``, and
    ``logging.jsonl`` of ms-swift. What cannot be read says nothing."""
    states = sorted([*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")])
    entries: list[Any] = []
    for path in states:
        entries += _entries(read_text(path, errors="replace"))
    for path in folder.glob("logging.jsonl"):
        for line in read_text(path, errors="replace").splitlines():
            entries += _entries(line)
    steps = set()
    for entry in entries:
        if isinstance(entry, Mapping) and any(str(name).startswith("eval_") for name in entry):
            named = (entry.get(name) for name in ("step", "global_step", "global_step/max_steps"))
            found = re.match(r"\d+", str(next((value for value in named if value is not None), "")))
            steps |= {int(found.group())} if found else set()
    return frozenset(steps)


def _entries(text: str) -> list[Any]:
    """The entries of a log: those of an object's ``log_history``, else the object."""
    try:
        content = parse_json(text)
    except (ValueError, RecursionError):
        return []
    history = content.get("log_history") if isinstance(content, dict) else None
    return history if isinstance(history, list) else [content]
