"""What a plot demands of its table, and the table cut into the series that are drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from opd_probe.errors import InputError
from opd_probe.plots.style import SeriesStyle, series_style

Floats = NDArray[np.float64]

STATES = {
    "own": "student-visited states (on-policy)",
    "fixed": "one fixed set of states",
    "unknown": "states of unknown origin",
}
_LONGEST = 46


@dataclass(frozen=True)
class Series:
    """The rows of one (run, teacher), ordered by ``x``, with the label and the style they are drawn in."""

    run: str
    teacher: str
    label: str
    style: SeriesStyle
    rows: pd.DataFrame


def numbers(rows: pd.DataFrame, column: str) -> Floats:
    """``rows[column]`` as float64 [len(rows)], NaN where it is missing or the column is absent."""
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    try:
        values = pd.to_numeric(rows[column])
    except (TypeError, ValueError) as error:
        raise InputError(f"column {column!r} of the table: expected numbers, got {error}") from None
    return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))


def metric_columns(rows: pd.DataFrame, metric: str) -> tuple[Floats, Floats, Floats]:
    """A metric with the ends of its interval: ``metric``, ``metric_lo``, ``metric_hi``, each [len(rows)]."""
    return numbers(rows, metric), numbers(rows, f"{metric}_lo"), numbers(rows, f"{metric}_hi")


def check_table(name: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: not a data frame, no rows, or a column that is not there.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{name} table: expected a pandas DataFrame, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{name} table: no column {', '.join(map(repr, missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise InputError(f"{name} table: expected at least one row, got none")


def check_unique(name: str, table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse two rows for one point, which would be drawn as a zigzag.

    Raises:
        InputError: two rows agree in every key; the message names the first such pair.
    """
    twice = table.duplicated(list(keys))
    if twice.any():
        row = table.loc[twice].iloc[0]
        where = ", ".join(f"{key} = {row[key]}" for key in keys)
        raise InputError(f"{name} table: expected one row per ({', '.join(keys)}), got two for {where}")


def single_k(name: str, table: pd.DataFrame) -> int:
    """The one k of a table.

    Raises:
        InputError: several k in one table; curves of different k are different metrics.
    """
    found = sorted({int(k) for k in numbers(table, "k") if np.isfinite(k)})
    if len(found) != 1:
        raise InputError(
            f"{name} table: expected one k in column 'k', got {', '.join(map(str, found)) or 'none'};"
            " pass the rows of one k"
        )
    return found[0]


def states_phrase(table: pd.DataFrame) -> str:
    """Whose states the rows describe, in words. A table that does not say has states of unknown origin."""
    return " and ".join(STATES[kind] for kind in _kinds(table))


def _kinds(table: pd.DataFrame) -> list[str]:
    if "states" not in table.columns:
        return ["unknown"]
    found = set(table["states"].fillna("unknown"))
    strange = sorted(str(kind) for kind in found if kind not in STATES)
    if strange:
        raise InputError(f"column 'states' of the table: expected {', '.join(STATES)}, got {strange[0]!r}")
    return [kind for kind in STATES if kind in found]


def split_series(table: pd.DataFrame, x: str) -> list[Series]:
    """One :class:`Series` per (run, teacher), in the order in which they appear; a run keeps its colour."""
    pairs = list(dict.fromkeys(zip(table["run"].astype(str), table["teacher"].astype(str), strict=True)))
    runs = list(dict.fromkeys(run for run, _ in pairs))
    mixed = len(_kinds(table)) > 1
    teachers = {run: [t for r, t in pairs if r == run] for run in runs}
    labels: list[str] = []
    parts: list[pd.DataFrame] = []
    for run, teacher in pairs:
        rows = table[(table["run"].astype(str) == run) & (table["teacher"].astype(str) == teacher)]
        parts.append(rows.iloc[np.argsort(numbers(rows, x), kind="stable")])
        label = run if len(teachers[run]) == 1 else f"{run} ← {teacher}"
        labels.append(f"{label} ({', '.join(_kinds(rows))} states)" if mixed else label)
    return [
        Series(run, teacher, label, series_style(index, runs.index(run)), rows)
        for index, ((run, teacher), label, rows) in enumerate(zip(pairs, shorten(labels), parts, strict=True))
    ]


def shorten(names: Sequence[str], limit: int = _LONGEST) -> list[str]:
    """Names of at most ``limit`` characters where possible: without the beginning that all share, then cut in
    the middle; left whole where the cut would make two names alike."""
    brief = list(names)
    if max(map(len, brief), default=0) > limit and len(set(brief)) > 1:
        shared = re.match(r".*[-_/ .]|", _shared_start(brief))
        start = len(shared.group()) if shared else 0
        brief = [f"…{name[start:]}" for name in brief] if start > 1 else brief

    def cut(name: str) -> str:
        head = (limit - 1) // 2
        return name if len(name) <= limit else f"{name[:head]}…{name[-(limit - 1 - head) :]}"

    short = [cut(name) for name in brief]
    return [whole if short.count(one) > 1 else one for whole, one in zip(brief, short, strict=True)]


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what the two extremes share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]


def interval_note(table: pd.DataFrame, metrics: Iterable[str], mark: str = "Bands") -> str:
    """The sentence that says what a band means, or why there is none."""
    drawn = any(np.isfinite(numbers(table, f"{metric}_lo")).any() for metric in metrics)
    prompts = numbers(table, "n_prompts")
    known = prompts[np.isfinite(prompts)]
    few = bool(len(known)) and bool((known < 2).any())
    if not drawn:
        return "No interval: fewer than 2 prompts." if few else "No interval in the table."
    counts = sorted({int(count) for count in known})
    span = f" ({counts[0]}{f'-{counts[-1]}' if len(counts) > 1 else ''} prompts)" if counts else ""
    where = " No band where there are fewer than 2 prompts." if few else ""
    return f"{mark}: 95 % bootstrap interval over prompts{span}.{where}"
