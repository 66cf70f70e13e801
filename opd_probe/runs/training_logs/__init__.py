"""Kinds of training logs, one module each. To add one, write its module and enter it into :data:`FORMATS`."""

from __future__ import annotations

from pathlib import Path

from opd_probe.errors import InputError, MissingError
from opd_probe.runs.training_logs import (
    dvclive,
    lines,
    mlflow,
    sqlite,
    swanlab,
    tables,
    tensorboard,
    trackio,
    trainer,
    wandb,
)
from opd_probe.runs.training_logs.form import LogFormat, Row
from opd_probe.texts import real_path

__all__ = ["FORMATS", "LogFormat", "Row", "accepted", "find_log"]

FORMATS: tuple[LogFormat, ...] = (
    trainer.STATE,
    lines.FORMAT,
    tables.CSV,
    tensorboard.FORMAT,
    dvclive.FORMAT,
    trackio.FORMAT,
    mlflow.DATABASE,
    mlflow.FILES,
    wandb.FORMAT,
    swanlab.FORMAT,
    sqlite.OTHER,
    lines.CONSOLE,
)
"""Asked in this order; the first that fits a path has it, and the first that finds a log in a directory. The last takes
every file."""


def accepted() -> str:
    """All kinds, for error messages."""
    return ", ".join(one.what for one in FORMATS if one.what)


def find_log(path: Path) -> tuple[LogFormat, Path, str]:
    """The kind of a log, where it lies, and which of its runs is meant ("" where the path does not say).

    Args:
        path: a file, or a directory that is a log or holds one, perhaps with ``#RUN`` behind it.

    Raises:
        MissingError: there is none.
        InputError: a directory holds several logs of one kind.
    """
    place, run = _parted(path)
    if not place.exists():
        raise MissingError(f"training log {path}: no such file; expected {accepted()}")
    for one in FORMATS:
        if one.fits(place):
            return one, place, run
    for one in FORMATS:
        inside = sorted(inner for pattern in one.inside for inner in place.glob(pattern) if one.fits(inner))
        found = list({real_path(inner): inner for inner in reversed(inside)}.values())[::-1]  # without links to another
        if found and one.latest:
            found = [max(found, key=one.latest)]
        if len(found) > 1:
            names = ", ".join(str(inner.relative_to(place)) for inner in found[:8]) + (", …" if found[8:] else "")
            raise InputError(f"training log {path}: holds {len(found)} logs ({names}); name one of them")
        if found:
            return one, found[0], run
    raise MissingError(f"training log {path}: no log in this directory; expected {accepted()}")


def _parted(path: Path) -> tuple[Path, str]:
    """A path without the ``#RUN`` behind it, and the run; a path that is there is one as it stands."""
    text = str(path)
    at = [place for place, sign in enumerate(text) if sign == "#"]
    if not path.exists():
        for place in at:
            if (file := Path(text[:place])).exists() and text[:place]:
                return file, text[place + 1 :]
    return path, ""
