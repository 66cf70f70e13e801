"""The curves of a report: each quantity by step with its interval, every run and teacher in one panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from opd_probe.digits import digits, true_minus, with_interval
from opd_probe.plots.labels import METRICS as LABELS
from opd_probe.results import references
from opd_probe.results.courses import Judged
from opd_probe.runs.log_files import QUANTITIES

PANELS: Mapping[str, tuple[float | None, float | None]] = {
    "overlap_ratio": (0.0, 1.0),
    "student_overlap_mass": (0.0, 1.0),
    "teacher_overlap_mass": (0.0, 1.0),
    "reverse_kl": (0.0, None),
    "overlap_advantage": (None, 0.0),
    "entropy_gap": (0.0, None),
    "accuracy": (0.0, 1.0),
    "response_length": (0.0, None),
    "truncation_rate": (0.0, 1.0),
}
"""What is drawn, and the range of what it can be."""

FROM_ZERO = frozenset({"reverse_kl", "overlap_advantage", "entropy_gap", "accuracy", "response_length"})
"""Of which the distance to 0 matters, so that their axes hold it."""

LOGGED_POINTS = 160
"""Points of a training log that are drawn; of more, means of neighbours."""


@dataclass(frozen=True, slots=True)
class Series:
    """One run and teacher of the charts."""

    index: int
    name: str


def series_of(found: Sequence[Judged]) -> list[Series]:
    """A series for each run and teacher; the teacher is named where a run has several."""
    runs = [one.run for one in found]
    return [
        Series(index, f"{one.run} ← {one.teacher}" if runs.count(one.run) > 1 else one.run)
        for index, one in enumerate(found)
    ]


@dataclass(frozen=True, slots=True)
class Axis:
    """The steps of all runs as places on one axis; the order of traces where a step is unknown.

    Attributes:
        xs, labels: of each place.
        places: for each run and teacher the place of each of its traces.
    """

    xs: list[float]
    labels: list[str]
    places: list[list[int]]

    @classmethod
    def of(cls, found: Sequence[Judged]) -> Axis:
        """The axis of some runs."""
        steps = [list(one.course.steps) for one in found]
        known = {step for own in steps for step in own}
        if None in known:
            places = [list(range(len(own))) for own in steps]
            most = max(map(len, steps))
            return cls([float(place) for place in range(most)], [f"trace {place + 1}" for place in range(most)], places)
        order = sorted(int(step) for step in known if step is not None)
        return cls(
            [float(step) for step in order],
            [str(step) for step in order],
            [[order.index(int(step or 0)) for step in own] for own in steps],
        )


def panels(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """A panel for each quantity that is known anywhere, as :func:`opd_probe.pages.charts.chart` takes it."""
    axis = Axis.of(found)
    ks = sorted({one.traces[0].settings.k for one in found})
    drawn = []
    for metric, limits in PANELS.items():
        series = [_series(index, one, metric, axis.places[index]) for index, one in enumerate(found)]
        series = [one for one in series if any(value is not None for value in one["values"])]
        if not series:
            continue
        label = LABELS[metric]
        drawn.append({
            "name": metric, "title": label.title.format(k=", ".join(map(str, ks))), "unit": label.unit,
            "reading": label.reading, "xs": axis.xs, "labels": axis.labels, "series": series, "limits": limits,
            "include": (0.0,) if metric in FROM_ZERO else (), **_references(metric, ks),
        })  # fmt: skip
    return drawn


def _series(index: int, one: Judged, metric: str, places: Sequence[int]) -> dict[str, Any]:
    at = [one.course.at(metric, place) for place in range(len(one.course.steps))]
    return {
        "index": index,
        "places": list(places),
        "values": [_known(found.value) for found in at],
        "low": [_known(found.lo) for found in at],
        "high": [_known(found.hi) for found in at],
        "texts": [
            None if math.isnan(found.value) else true_minus(with_interval(found.value, found.lo, found.hi))
            for found in at
        ],
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _references(metric: str, ks: Sequence[int]) -> dict[str, Any]:
    """What stands behind the curves, and a line that says so; nothing at another k than that of the sources."""
    band, paths = references.PAPER_BANDS.get(metric), references.lab_paths(metric)
    if list(ks) != [references.AT_K] or band is None:
        return {"band": None, "paths": [], "note": ""}
    says = [f"Grey band: {band.says}."]
    if paper := references.PAPER_PATHS.get(metric):
        paths = [paper, *paths]
        says.append(f"Dashed: {paper.says}.")
    says.append(f"Dotted: {references.LAB_SAYS}.")
    return {"band": (band.low, band.high), "paths": [asdict(path) for path in paths], "note": " ".join(says)}


def log_panels(found: Sequence[Judged], log: pd.DataFrame) -> list[dict[str, Any]]:
    """A panel for each quantity of the training logs, a series for each run."""
    runs = list(dict.fromkeys(one.run for one in found))
    first = {run: next(index for index, one in enumerate(found) if one.run == run) for run in runs}
    drawn = []
    for quantity in QUANTITIES:
        if quantity not in log or not np.isfinite(log[quantity].to_numpy(dtype=float)).any():
            continue
        curves = {run: _thinned(log[log["run"] == run], quantity) for run in runs}
        xs = sorted({step for steps, _ in curves.values() for step in steps})
        label = LABELS[quantity]
        drawn.append({
            "name": quantity, "title": label.title, "unit": label.unit, "reading": label.reading, "xs": xs,
            "labels": [f"{step:.0f}" for step in xs],
            "series": [
                {
                    "index": first[run], "places": [xs.index(step) for step in steps], "values": values,
                    "low": [None] * len(steps), "high": [None] * len(steps),
                    "texts": [true_minus(digits(value)[0]) for value in values], "dots": len(steps) < 16,
                }
                for run, (steps, values) in curves.items() if steps
            ],
            "limits": (None, None), "include": (), "band": None, "paths": [],
            "note": f"Means of neighbouring steps, {LOGGED_POINTS} points."
            if any(len(steps) == LOGGED_POINTS for steps, _ in curves.values()) else "",
        })  # fmt: skip
    return drawn


def _thinned(rows: pd.DataFrame, quantity: str) -> tuple[list[float], list[float]]:
    """Steps and values that were logged, as means of equally many neighbours where there are more than are drawn."""
    values = rows[quantity].to_numpy(dtype=float)
    known = np.isfinite(values)
    steps, values = rows["step"].to_numpy(dtype=float)[known], values[known]
    if len(values) > LOGGED_POINTS:
        parts = np.array_split(np.arange(len(values)), LOGGED_POINTS)
        steps, values = (np.array([column[part].mean() for part in parts]) for column in (steps, values))
        steps = np.rint(steps)
    return steps.tolist(), values.tolist()


def value_table(found: Sequence[Judged], series: Sequence[Series]) -> dict[str, Any]:
    """Every value that is drawn, with its interval, as a table: a row for each trace."""
    there = [metric for metric in PANELS if any(np.isfinite(one.course.values(metric)).any() for one in found)]
    rows = []
    for one, name in zip(found, series, strict=True):
        for place, step in enumerate(one.course.steps):
            at = [one.course.at(metric, place) for metric in there]
            cells = ["–" if math.isnan(v.value) else true_minus(with_interval(v.value, v.lo, v.hi)) for v in at]
            rows.append({"name": name.name, "step": "?" if step is None else str(step), "cells": cells})
    return {"columns": [f"{LABELS[m].title.format(k='k')} ({LABELS[m].unit})" for m in there], "rows": rows}
