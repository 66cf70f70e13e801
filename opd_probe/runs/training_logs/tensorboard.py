"""tensorboard's event files, one or a directory of them, read by its package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.runs.training_logs.form import LogFormat, Point, Row, by_step
from opd_probe.texts import check_ordinary

EVERY = 0
"""Of a tag's points; left to itself the package keeps a sample of 10,000."""


def _fits(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*tfevents*"))
    return "tfevents" in path.name


def _events(path: Path, _run: str) -> Iterator[Row]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise InputError("event files need tensorboard; install it, or give trainer_state.json or a CSV file") from None
    for file in path.glob("*tfevents*") if path.is_dir() else [path]:
        check_ordinary(file)
    try:
        events = EventAccumulator(str(path), size_guidance={"scalars": EVERY, "tensors": EVERY}).Reload()
    except Exception as error:  # protocol buffers have errors of their own
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return by_step(_points(events))


def _points(events: Any) -> Iterator[Point]:
    """Scalars as they were written until 2018 and by torch, and as tensors, which newer writers make of them."""
    from tensorboard.util.tensor_util import make_ndarray

    tags = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            yield event.step, tag, event.value
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            for event in events.Tensors(tag):
                yield event.step, tag, float(make_ndarray(event.tensor_proto).reshape(()))


FORMAT = LogFormat(
    "tensorboard",
    "an event file of tensorboard or a directory of them",
    _fits,
    _events,
    inside=("runs/*", "lightning_logs/version_*", "logs", "tensorboard", "tensorboard_log"),
)
