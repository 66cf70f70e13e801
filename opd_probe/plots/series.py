"""The table cut into the series that are drawn: one per run and teacher; of several seeds, their mean and each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from opd_probe.plain import visible
from opd_probe.plots.style import SeriesStyle, series_style
from opd_probe.plots.tables import kinds_of_states, numbers, sampling_phrase, text_phrase

_LONGEST = 46


@dataclass(frozen=True)
class Series:
    """The rows of one (run, teacher), with the label and the style they are drawn in.

    Of several seeds, ``rows`` is their mean and ``seeds`` holds the rows of each by its name.
    """

    run: str
    teacher: str
    label: str
    style: SeriesStyle
    rows: pd.DataFrame
    seeds: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def split_series(table: pd.DataFrame, x: str, keys: Sequence[str] = ()) -> list[Series]:
    """The series of a table, rows ordered by ``x``; rows of several seeds are one series, their mean and each of them.

    Args:
        keys: the columns that tell the rows of one seed apart (default: ``x``).
    """
    found = []
    for one in split_runs(table):
        seeds = {seed: _ordered(part, x) for seed, part in split_seeds(one.rows).items()}
        several = len(seeds) > 1
        rows = mean_over_seeds(seeds, keys or (x,)) if several else one.rows
        found.append(replace(one, rows=_ordered(rows, x), seeds=seeds if several else {}))
    return found


def split_runs(table: pd.DataFrame) -> list[Series]:
    """One :class:`Series` per (run, teacher) with all its rows, in the order in which they appear; a run keeps its
    colour."""
    pairs = list(dict.fromkeys(zip(table["run"].astype(str), table["teacher"].astype(str), strict=True)))
    runs = list(dict.fromkeys(run for run, _ in pairs))
    mixed = len(kinds_of_states(table)) > 1
    of_text = text_phrase(table).startswith("some")
    sampled = sampling_phrase(table).startswith("some")
    teachers = {run: [t for r, t in pairs if r == run] for run in runs}
    labels: list[str] = []
    parts: list[pd.DataFrame] = []
    for run, teacher in pairs:
        rows = table[((table["run"].astype(str) == run) & (table["teacher"].astype(str) == teacher)).to_numpy()]
        parts.append(rows)
        label = visible(run if len(teachers[run]) == 1 else f"{run} ← {teacher}")
        notes = [f"{', '.join(kinds_of_states(rows))} states" if mixed else "", text_phrase(rows) if of_text else ""]
        notes.append(sampling_phrase(rows) if sampled else "")
        labels.append(f"{label} ({'; '.join(filter(None, notes))})" if any(notes) else label)
    return [
        Series(run, teacher, label, series_style(index, runs.index(run)), rows)
        for index, ((run, teacher), label, rows) in enumerate(zip(pairs, shorten(labels), parts, strict=True))
    ]


def _ordered(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    return rows.iloc[np.argsort(numbers(rows, x), kind="stable")]


def split_seeds(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each seed by its name, in the order of the seeds; all rows under "" without a column ``seed``."""
    if "seed" not in rows.columns:
        return {"": rows}
    seeds = rows["seed"].astype("string").fillna("?")
    names = sorted(map(str, seeds.unique()), key=lambda name: (len(name), name))
    return {name: rows[(seeds == name).to_numpy(dtype=bool)] for name in names}


def mean_over_seeds(seeds: Mapping[str, pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """One row for all ``keys`` that every seed has, with the mean of each numeric column.

    A mean over some of the seeds would jump where one of them begins or ends, so what one seed lacks is missing.
    Intervals are left out: the seeds themselves show the spread.
    """
    table = pd.concat(seeds.values(), ignore_index=True)
    numeric = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
    values = [c for c in numeric if c not in (*keys, "seed") and not (c.endswith(("_lo", "_hi")))]
    grouped = table.groupby(list(keys), dropna=False)[values]
    means = grouped.mean().where(grouped.count() == len(seeds))[grouped.size() == len(seeds)].reset_index()
    carried = ("run", "teacher", "states", "token_source", "sampling", "quantised", "stopped")
    return means.assign(**{c: table[c].iloc[0] for c in carried if c in table.columns})


def seed_note(series: Sequence[Series], *, lines: bool = True) -> str:
    """The sentence that says what thin and thick lines are; "" where no series has several seeds."""
    counts = sorted({len(one.seeds) for one in series if one.seeds})
    if not counts:
        return ""
    span = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Thin: {span} seeds, thick: their mean." if lines else f"Means over {span} seeds."


def shorten(names: Sequence[str], limit: int = _LONGEST) -> list[str]:
    """Names of at most ``limit`` characters where possible: without the run, or else the beginning, that all share,
    then cut in the middle; none is cut where that would make two alike."""
    brief = list(names)
    longest = max(map(len, brief), default=0)
    if longest > limit and len(set(brief)) > 1:
        shared = _shared_start(brief)
        run, part = (re.match(pattern, shared) for pattern in (r".* ← |", r".*[-_/ .]|"))
        start = len(run.group()) if run else 0
        if not start or longest - start + 1 > limit:
            start = len(part.group()) if part else 0
        brief = [f"…{name[start:]}" for name in brief] if start > 1 else brief

    def cut(name: str) -> str:
        head = (limit - 1) // 2
        return name if len(name) <= limit else f"{name[:head]}…{name[-(limit - 1 - head) :]}"

    short = [cut(name) for name in brief]
    return short if len(set(short)) == len(set(brief)) else brief


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what the two extremes share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]
