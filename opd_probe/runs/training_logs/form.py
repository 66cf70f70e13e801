"""What a kind of training log is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.texts import check_ordinary

Row = Mapping[str, Any]
"""What was logged at once, by name; the step among it."""

Point = tuple[int, str, Any]
"""Step, name and value, of logs that keep each quantity by itself."""


@dataclass(frozen=True, slots=True)
class LogFormat:
    """A kind of training log.

    Attributes:
        name: of what writes it.
        what: the file, for error messages.
        fits: whether a path is one, by its name and its first bytes. Raises nothing.
        read: the rows in the order in which they were logged, of a path and, where a file may hold several runs, the
            name or id of one ("" where the file has but one). Raises OSError, ValueError and the like for a broken one.
        inside: patterns of what to look for in a directory.
        latest: of several in a directory the one to take, by this key; None: the user is to name one.
        appended: whether rows come in the order of training, so that a step that is logged again, further back, is
            where a run went on from a checkpoint.
        several: whether a file may hold several runs.
    """

    name: str
    what: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Iterable[Row]]
    inside: tuple[str, ...] = ()
    latest: Callable[[Path], Any] | None = None
    appended: bool = False
    several: bool = False


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes."""
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def by_step(points: Iterable[Point]) -> Iterator[Row]:
    """A row per step of what was logged quantity by quantity, the later value of a quantity that is there twice."""
    rows: dict[int, dict[str, Any]] = {}
    for step, name, value in points:
        rows.setdefault(step, {"step": step})[name] = value
    for step in sorted(rows):
        yield rows[step]


def chosen_run(runs: Mapping[str, str], wanted: str) -> str:
    """The id of the run that is meant.

    Args:
        runs: name by id.
        wanted: the name or the id of one; "" for the one that there is.

    Raises:
        InputError: none, or several.
    """
    found = [one for one, name in runs.items() if wanted in ("", one, name)]
    if len(found) == 1:
        return found[0]
    twice = [name for name in runs.values() if list(runs.values()).count(name) > 1]
    shown = [f"{name} ({one})" if name in twice else name for one, name in runs.items()]
    names = ", ".join(shown[:12]) + (", …" if shown[12:] else "")
    if not found:
        asked = f"no run {wanted!r} in it" if wanted else "no run in it"
        raise InputError(f"{asked}; it has {names or 'none'}")
    raise InputError(f"it holds several runs; expected FILE#RUN with one of {names}")
