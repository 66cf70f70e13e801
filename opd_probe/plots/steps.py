"""A grid of panels over training steps, one line per (run, teacher): the frame shared by several figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from opd_probe.plots import style as house
from opd_probe.plots.labels import Panel
from opd_probe.plots.layout import finish, grid, series_entries
from opd_probe.plots.panels import (
    StepAxis,
    draw_panel,
    dress_metric,
    not_available,
    step_curves,
    title_panel,
    why_missing,
)
from opd_probe.plots.tables import (
    Series,
    check_unique,
    interval_note,
    numbers,
    single_k,
    split_series,
    states_phrase,
)


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
) -> house.HouseFigure:
    """A grid of panels over steps, one line per (run, teacher)."""
    k = single_k(name, table)
    check_unique(name, table[np.isfinite(numbers(table, x))], ["run", "teacher", x])
    series = split_series(table, x)
    axis = StepAxis.of(table, x)
    metrics = [metric for panel in panels for metric in panel.metrics]
    lines = any(len(one.rows) > 1 for one in series)
    with house.house_style():
        figure = house.new_figure(columns)
        axes = grid(figure, len(panels), per_row)
        for ax, panel in zip(axes, panels, strict=True):
            _draw_step_panel(ax, panel, table, series, axis, x, k)
        note = interval_note(table, metrics, "Bands" if lines else "Bars")
        if any(metric.endswith("_overlap_mass") for metric in metrics):
            note += " Grey: overlap mass of 97-99 %."
        finish(
            figure,
            title=f"{title} at {states_phrase(table)}",
            note=note,
            rows=-(-len(panels) // per_row),
            row_height=row_height,
            legend=series_entries(series, lines=lines),
            direct=(axes[0], series),
        )
    return figure


def _draw_step_panel(
    ax: Axes, panel: Panel, table: pd.DataFrame, series: list[Series], axis: StepAxis, x: str, k: int
) -> None:
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
