"""A grid of panels over training steps, one line per (run, teacher): the frame shared by several figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import opd_probe.plots.style as house
from opd_probe.plots.labels import Panel
from opd_probe.plots.layout import Entry, finish, grid, series_entries
from opd_probe.plots.panels import (
    StepAxis,
    draw_panel,
    dress_metric,
    not_available,
    step_curves,
    title_panel,
    why_missing,
)
from opd_probe.plots.references import Reference, draw_references
from opd_probe.plots.series import Series, seed_note, split_series
from opd_probe.plots.tables import check_unique, interval_note, numbers, single_k


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
    return " ".join(parts)


def draw_step_panel(
    ax: Axes, panel: Panel, table: pd.DataFrame, series: Sequence[Series], axis: StepAxis, x: str, k: int
) -> None:
    """One panel over steps, with its title, unit and axis; or the reason why it is empty."""
    why = why_missing(table, panel.metrics)
    if why:
        title_panel(ax, panel, k)
        not_available(ax, why)
        return
    curves = step_curves(series, panel, axis, x)
    remark = draw_panel(ax, curves, where=x.replace("_", " "), names=axis.name)
    title_panel(ax, panel, k, remark, lines=not all(curve.point for curve in curves))
    dress_metric(ax, panel.metrics[0])
    axis.dress(ax)
