"""Panels over training steps, one line per (run, teacher): their axis, their curves, the grid of several figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

import opd_probe.plots.style as house
from opd_probe.plots.labels import AXES, Panel
from opd_probe.plots.layout import Entry, finish, grid, series_entries
from opd_probe.plots.panels import (
    Curve,
    draw_panel,
    dress_metric,
    not_available,
    title_panel,
    why_missing,
)
from opd_probe.plots.references import Reference, draw_references
from opd_probe.plots.series import Series, seed_note, split_series
from opd_probe.plots.tables import (
    Floats,
    check_unique,
    interval_note,
    metric_columns,
    numbers,
    single_k,
    single_overlap_note,
)


@dataclass(frozen=True)
class StepAxis:
    """Where the steps of a table lie on the x axis. Rows without a step have a place of their own on the
    right, "?"."""

    values: Floats
    title: str

    @classmethod
    def of(cls, table: pd.DataFrame, x: str) -> StepAxis:
        return cls(numbers(table, x), AXES.get(x, x.replace("_", " ")))

    @cached_property
    def known(self) -> Floats:
        return np.unique(self.values[np.isfinite(self.values)])

    @property
    def has_unknown(self) -> bool:
        return not bool(np.isfinite(self.values).all())

    @cached_property
    def unknown_at(self) -> float:
        """x of the rows without a step."""
        if not len(self.known):
            return 0.0
        extent = float(self.known[-1] - self.known[0])
        return float(self.known[-1]) + (0.12 * extent or 1.0)

    def place(self, steps: Floats) -> Floats:
        return np.where(np.isfinite(steps), steps, self.unknown_at)

    def name(self, place: float) -> str:
        return "?" if self.has_unknown and place == self.unknown_at else f"{place:g}"

    def dress(self, ax: Axes) -> None:
        """Ticks, limits and label; limits are the same in every panel of a figure."""
        ends = [*self.known[[0, -1]]] if len(self.known) else []
        ends += [self.unknown_at] if self.has_unknown else []
        low, high = float(min(ends)), float(max(ends))
        ticks = [low]
        if len(self.known) > 1:
            found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.known[0], self.known[-1])
            ticks = [float(t) for t in found if self.known[0] <= t <= self.known[-1]]
        elif len(self.known):
            ticks = [float(self.known[0])]
        if self.has_unknown:
            near = 0.06 * (high - low)
            ticks = [t for t in ticks if t < self.unknown_at - near] + [self.unknown_at]
        margin = 0.04 * (high - low) if len(self.known) > 1 else 0.55
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: self.name(value)))
        ax.set_xlabel(self.title + (" (? = unknown)" if self.has_unknown else ""))


def draw_steps(
    table: pd.DataFrame,
    panels: list[Panel],
    *,
    x: str,
    columns: int,
    per_row: int,
    row_height: float,
    name: str,
    title: str,
    references: Sequence[Reference] = (),
) -> house.HouseFigure:
    """A grid of panels over steps, one line per (run, teacher)."""
    k = single_k(name, table) if "k" in table.columns else 0
    series = step_series(name, table, x)
    axis = StepAxis.of(table, x)
    with house.house_style():
        figure = house.new_figure(columns)
        axes = grid(figure, len(panels), per_row)
        for ax, panel in zip(axes, panels, strict=True):
            draw_step_panel(ax, panel, table, series, axis, x, k)
            draw_references(ax, panel.metrics[0], references)
        metrics = [metric for panel in panels for metric in panel.metrics]
        lines = any(len(one.rows) > 1 for one in series)
        finish(
            figure,
            title=title,
            note=step_note(series, metrics),
            rows=-(-len(panels) // per_row),
            row_height=row_height,
            legend=[*series_entries(series, lines=lines), *(Entry(r.label, *r.look) for r in references)],
            direct=[(ax, [*series, *(r for r in references if r.drawn_in(ax))]) for ax in axes],
        )
    return figure


def step_series(name: str, table: pd.DataFrame, x: str) -> list[Series]:
    """The series of a table over steps.

    Raises:
        InputError: two rows for one point.
    """
    check_unique(name, table[np.isfinite(numbers(table, x))], ["run", "teacher", x])
    return split_series(table, x)


def step_note(series: Sequence[Series], metrics: Sequence[str]) -> str:
    """What thin lines, bands, bars and the grey area mean, as far as there are any."""
    seeds = seed_note(series)
    alone = [one.rows for one in series if not one.seeds]
    lines = any(len(one.rows) > 1 for one in series)
    parts = [seeds] if seeds else []
    if alone:
        parts.append(interval_note(pd.concat(alone), metrics, "Bands" if lines else "Bars"))
    if any(metric.endswith("_overlap_mass") for metric in metrics):
        parts.append("Grey: overlap mass of 97-99 %.")
    every = [rows for one in series for rows in (one.seeds.values() if one.seeds else [one.rows])]
    parts.append(single_overlap_note(pd.concat(every), metrics))
    return " ".join(part for part in parts if part)


def draw_step_panel(
    ax: Axes, panel: Panel, table: pd.DataFrame, series: Sequence[Series], axis: StepAxis, x: str, k: int
) -> None:
    """One panel over steps, with its title, unit and axis; or the reason why it is empty."""
    why = why_missing(table, panel.metrics)
    if why:
        title_panel(ax, panel, k)
        not_available(ax, why)
        return
    curves = _step_curves(series, panel, axis, x)
    remark = draw_panel(ax, curves, where=x.replace("_", " "), names=axis.name)
    title_panel(ax, panel, k, remark, lines=not all(curve.point for curve in curves))
    dress_metric(ax, panel.metrics[0])
    axis.dress(ax)


def _step_curves(series: Sequence[Series], panel: Panel, axis: StepAxis, x: str) -> list[Curve]:
    """Curves of one panel over steps: the seeds thin and pale below their mean, or one line with its band."""
    curves = []
    for order, one in enumerate(series):
        for role, metric in enumerate(panel.metrics):
            dash = house.DASHED if role else (house.SOLID if panel.roles else one.style.dash)
            main = Curve(
                f"{metric}:{one.label}",
                *(np.zeros(0),) * 4,
                one.style.color,
                one.style.marker,
                dash,
                filled=role == 0,
                order=order,
                second=role == 1,
            )
            thin = replace(main, color=house.mix(main.color, "white", 0.5), marker="None", width=house.SEED, band=False)
            for name, rows in one.seeds.items():
                curves += _over_steps(replace(thin, key=f"{main.key}:seed {name}"), rows, metric, axis, x)
            curves += _over_steps(main, one.rows, metric, axis, x)
    return _each_band_once(curves)


def _each_band_once(curves: Sequence[Curve]) -> list[Curve]:
    """What does not depend on the teacher has one band for all teachers of a run, not one upon the other."""
    seen: set[tuple[Any, ...]] = set()
    kept = []
    for curve in curves:
        band = curve.color, *(values.tobytes() for values in (curve.x, curve.lo, curve.hi))
        kept.append(replace(curve, band=curve.band and band not in seen))
        seen.add(band)
    return kept


def _over_steps(curve: Curve, rows: pd.DataFrame, metric: str, axis: StepAxis, x: str) -> list[Curve]:
    """The known steps as a line, each unknown one as a point of its own.

    A row with neither a value nor a count (``<metric>_n``) of the metric is one of another table, such as a training
    log's, that was joined: it is no gap.
    """
    y, lo, hi = metric_columns(rows, metric)
    steps = numbers(rows, x)
    there = ~np.isnan(y) | np.isfinite(numbers(rows, f"{metric}_n"))
    known = np.isfinite(steps) & there
    parts: list[Any] = [np.flatnonzero(known)] if known.any() else []
    parts += [np.array([index]) for index in np.flatnonzero(~np.isfinite(steps) & there)]
    return [replace(curve, x=axis.place(steps[p]), y=y[p], lo=lo[p], hi=hi[p]) for p in parts]
