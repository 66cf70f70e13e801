"""transformers' ``trainer_state.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opd_probe.models.steps import step_of_name
from opd_probe.runs.training_logs.form import LogFormat, Row
from opd_probe.runs.training_logs.lines import encoding_of
from opd_probe.texts import read_json

NAME = "trainer_state.json"


def states_below(directory: Path) -> list[Path]:
    """Where a run's trainer may have left its state: in the directory itself, then in its checkpoints, latest first."""
    steps = {step_of_name(path.name): path for path in directory.glob("*") if path.is_dir()}
    known = sorted((step for step in steps if step is not None), reverse=True)
    return [place / NAME for place in (directory, *(steps[step] for step in known))]


def _state(path: Path, _run: str) -> Iterator[Row]:
    content = read_json(path, encoding=encoding_of(path))
    if not isinstance(content, dict) or not isinstance(content.get("log_history"), list):
        raise ValueError("no list log_history in it")
    for number, row in enumerate(content["log_history"]):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} of log_history: expected an object, got {type(row).__name__}")
        yield row


def _lateness(path: Path) -> tuple[bool, int]:
    """That of the run itself, then that of the latest checkpoint."""
    step = step_of_name(path.parent.name)
    return step is None, -1 if step is None else step


STATE = LogFormat(
    "transformers",
    NAME,
    lambda path: path.is_file() and path.suffix.lower() == ".json",
    _state,
    inside=(NAME, f"*/{NAME}"),
    latest=_lateness,
    appended=True,
)
