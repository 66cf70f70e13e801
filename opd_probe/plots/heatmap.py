"""Heatmaps of a quantity by position and training step: where in the response uncertainty starts, how it moves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

import opd_probe.plots.style as house
from opd_probe.errors import InputError
from opd_probe.plots.labels import panel_of
from opd_probe.plots.layout import finish, grid
from opd_probe.plots.panels import not_available, why_missing
from opd_probe.plots.series import Series, shorten, split_runs, split_seeds
from opd_probe.plots.steps import StepAxis
from opd_probe.plots.tables import (
    MIN_STATES,
    Floats,
    check_table,
    check_unique,
    numbers,
    single_k,
    states_phrase,
    without_sparse_bins,
)

_MAP = "viridis"  # its lightness rises evenly: for colour-blind readers and for grey printers


def plot_heatmap(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("student_entropy", "teacher_entropy"),
    columns: int = 2,
    title: str = "Entropy by position and step",
) -> house.HouseFigure:
    """A row of heatmaps per run and teacher, one for each metric: training steps to the right, positions upwards.

    Args:
        table: the position table, one row per (run, teacher, step, bin): ``position_lo``, ``position_hi``, the metrics,
            and ``n_states`` where it is known. With a column ``seed`` a cell is the mean over the seeds that reach it.
        metrics: columns to draw, side by side; those of one unit share a colour scale.
        columns: width of the figure, 1 or 2 columns of a paper.
        title: the beginning of the title; whose states are shown is added.

    Raises:
        InputError: no rows, a column that is not there, no known step, or two rows for one cell.
    """
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"plot_heatmap: expected metrics to be a list of column names, got {metrics!r}")
    check_table("position", table, ["run", "teacher", "step", "k", "position_lo", "position_hi", *metrics])
    k = single_k("position", table)
    table = table[np.isfinite(numbers(table, "step"))]
    if table.empty:
        raise InputError("position table: expected rows with a known step, got none")
    check_unique("position", table, ["run", "teacher", "step", "position_lo"])
    table = without_sparse_bins(table)
    series = split_runs(table)
    with house.house_style():
        figure = house.new_figure(columns)
        per_row = len(metrics) if columns == 2 else 1
        axes = grid(figure, len(series) * len(metrics), per_row)
        scales = _scales(table, metrics)
        for index, ax in enumerate(axes):
            one, metric = series[index // len(metrics)], metrics[index % len(metrics)]
            _draw_panel(ax, one, metric, scales[metric], k, name=len(series) > 1 and index % per_row == 0)
            if index < len(axes) - per_row:
                ax.set_xlabel("")
            if index >= per_row == len(metrics):  # as in the row above
                ax.set_title("", loc="left")
            if index % per_row:
                ax.set_ylabel("")
        drawn = [ax for ax in axes if ax.collections]
        for ax in drawn:
            ax.set_ylim(0, max(other.get_ylim()[1] for other in drawn))
        _color_bars(figure, axes, metrics, scales)
        seeds = max(len(split_seeds(one.rows)) for one in series)
        means = f"Means over {seeds} seeds. " if seeds > 1 else ""
        finish(
            figure,
            title=f"{title} at {states_phrase(table)}",
            note=means + f"Hatched: fewer than {MIN_STATES} states, not drawn.",
            rows=len(axes) // per_row,
            row_height=1.6,
        )
    return figure


def _scales(table: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Normalize]:
    """One colour scale for all metrics of a unit, so that student and teacher can be compared."""
    units = {metric: panel_of(metric).unit for metric in metrics}
    scales = {}
    for unit in dict.fromkeys(units.values()):
        values = np.concatenate([numbers(table, metric) for metric in metrics if units[metric] == unit])
        finite = values[np.isfinite(values)]
        scales[unit] = Normalize(*((finite.min(), finite.max()) if len(finite) else (0.0, 1.0)))
    return {metric: scales[unit] for metric, unit in units.items()}


def _draw_panel(ax: Axes, one: Series, metric: str, scale: Normalize, k: int, *, name: bool) -> None:
    ax.set_title(panel_of(metric).title.format(k=k), loc="left")
    why = why_missing(one.rows, [metric])
    if why:
        not_available(ax, why)
        return
    steps, edges, values = cells(one.rows, metric)
    mesh = ax.pcolormesh(_between(steps), edges, values, cmap=_MAP, norm=scale, linewidth=0, rasterized=False)
    mesh.set_gid(f"{metric}:{one.label}")
    mesh.set_edgecolor("face")  # no pale seams between the cells of a PDF
    ax.patch.set(hatch="////", facecolor="white", edgecolor="#CCCCCC")
    ax.grid(False)
    StepAxis.of(one.rows, "step").dress(ax)
    ax.set_xlim(*_between(steps)[[0, -1]])
    ax.set_ylim(edges[0], edges[-1])
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.set_ylabel("position (tokens)")
    if name:
        ax.set_ylabel(f"{textwrap.fill(shorten([one.label], 40)[0], 22)}\n\nposition (tokens)")


def cells(rows: pd.DataFrame, metric: str) -> tuple[Floats, Floats, Floats]:
    """The cells of one run: steps [s], edges of the bins [b + 1] in tokens, values [b, s], NaN where nothing is known.

    Bins of all steps and seeds are cut at each other's edges, since longer responses have wider ones.
    """
    lows, highs = numbers(rows, "position_lo"), numbers(rows, "position_hi") + 1
    values, at = numbers(rows, metric), numbers(rows, "step")
    steps, edges = np.unique(at), np.unique(np.concatenate([lows, highs]))
    total, seen = np.zeros((2, len(edges) - 1, len(steps)))
    for low, high, step, value in zip(lows, highs, at, values, strict=True):
        if np.isfinite(value):
            cell = (edges[:-1] >= low) & (edges[1:] <= high), np.searchsorted(steps, step)
            total[cell] += value
            seen[cell] += 1
    return steps, edges, np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def _between(steps: Floats) -> Floats:
    """Edges halfway between the steps, the outer ones as far away as the inner ones: [len(steps) + 1]."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    inner = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - inner[0]], inner, [2 * steps[-1] - inner[-1]]])


def _color_bars(
    figure: house.HouseFigure, axes: Sequence[Axes], metrics: Sequence[str], scales: dict[str, Normalize]
) -> None:
    """A colour bar for each scale, beside all the panels that share it."""
    for scale in dict.fromkeys(scales.values()):
        of_scale = [metric for metric in metrics if scales[metric] is scale]
        shared = [ax for index, ax in enumerate(axes) if metrics[index % len(metrics)] in of_scale]
        drawn = [ax.collections[0] for ax in shared if ax.collections]
        if drawn:
            bar = figure.colorbar(drawn[0], ax=shared, pad=0.02, aspect=30, fraction=0.05)
            bar.set_label(panel_of(of_scale[0]).unit)
            bar.outline.set_visible(False)
