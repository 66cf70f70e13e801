"""The dynamics of alignment: every per-state quantity over training steps, or over positions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import opd_probe.plots.style as house
from opd_probe.errors import InputError
from opd_probe.plots.labels import Panel, group_panels
from opd_probe.plots.layout import Entry, finish, grid, panels_per_row
from opd_probe.plots.panels import (
    Curve,
    draw_panel,
    dress_metric,
    keep_bands,
    not_available,
    title_panel,
    why_missing,
)
from opd_probe.plots.references import read_references
from opd_probe.plots.series import Series, seed_note, shorten, split_series
from opd_probe.plots.steps import draw_steps
from opd_probe.plots.tables import (
    MIN_STATES,
    check_table,
    check_unique,
    interval_note,
    metric_columns,
    numbers,
    single_k,
    single_overlap_note,
    states_phrase,
    without_sparse_bins,
)

DEFAULT_METRICS = (
    "overlap_ratio",
    "overlap_advantage",
    "entropy_gap",
    "student_entropy",
    "teacher_entropy",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "reverse_kl",
    "forward_kl",
    "sampled_reward",
)
_WHEN_KNOWN = ("jsd", "accuracy")
_NAMED_STEPS = 6  # shades named in the legend; of more, the first, the last and some between


def plot_alignment(
    table: pd.DataFrame,
    *,
    x: Literal["step", "position"] = "step",
    metrics: Sequence[str] | None = None,
    columns: int = 2,
    title: str = "Alignment",
    references: pd.DataFrame | None = None,
    beside: Mapping[str, str] | None = None,
) -> house.HouseFigure:
    """A grid of alignment curves.

    Args:
        table: for ``x="step"`` the overlap table, one row per (run, teacher, step), or with a column ``seed`` per
            (run, teacher, seed, step): each seed is then a thin line below their mean. For ``x="position"`` the
            position table, one row per (run, teacher, step, bin), ``position`` being the mean of the bin.
        x: ``step``: one line per (run, teacher). ``position``: one line per step, light (early) to dark
            (late), and one column of panels per (run, teacher) when there are several.
        metrics: columns to draw, in this order; student and teacher of one quantity share a panel. Default:
            the alignment metrics of the paper, then ``jsd`` and ``accuracy`` where they are known.
        columns: width of the figure, 1 or 2 columns of a paper.
        title: the beginning of the title; whose states are shown is added.
        beside: by metric the column of what a trainer logged of it, drawn dashed in its panel over steps.
        references: levels to draw across the panels over steps: a row per ``label``, a column per metric.

    Raises:
        InputError: no rows, a column that is not there, several k, or two rows for one point.
    """
    if x not in ("step", "position"):
        raise InputError(f"plot_alignment: expected x = 'step' or 'position', got {x!r}")
    name = "overlap" if x == "step" else "position"
    check_table(name, table, ["run", "teacher", "step", "k", x])
    panels = group_panels(_chosen(name, table, metrics), beside or {})
    if x == "step":
        return draw_steps(
            table,
            panels,
            x="step",
            columns=columns,
            per_row=panels_per_row(len(panels), columns),
            row_height=1.95 if 1 < len(panels) <= 4 else 1.62,
            name=name,
            title=f"{title} at {states_phrase(table)}",
            references=read_references(references),
        )
    return _over_positions(table, panels, columns, title)


def _chosen(name: str, table: pd.DataFrame, metrics: Sequence[str] | None) -> list[str]:
    if metrics is not None:
        if isinstance(metrics, str) or not metrics:
            raise InputError(f"plot_alignment: expected metrics to be a list of column names, got {metrics!r}")
        check_table(name, table, metrics)
        return list(metrics)
    if name == "overlap":
        check_table(name, table, DEFAULT_METRICS)
    there = [metric for metric in DEFAULT_METRICS if metric in table.columns]
    there += [metric for metric in _WHEN_KNOWN if np.isfinite(numbers(table, metric)).any()]
    if not there:
        raise InputError(f"{name} table: expected at least one of {', '.join(DEFAULT_METRICS)}, got none")
    return there


def _over_positions(table: pd.DataFrame, panels: list[Panel], columns: int, title: str) -> house.HouseFigure:
    k = single_k("position", table)
    kept = without_sparse_bins(table)
    sparse = f"; bins of fewer than {MIN_STATES} states are left out" if len(kept) < len(table) else ""
    table = kept
    check_unique("position", table, ["run", "teacher", "step", "position"])
    series = split_series(table, "position", ("step", "position_lo" if "position_lo" in table else "position"))
    steps = step_order(table)
    several = len(series) > 1
    per_row = len(series) if several else panels_per_row(len(panels), columns)
    with house.house_style():
        figure = house.new_figure(columns)
        if len(series) > 3:  # wider than a page rather than unreadable
            figure.set_size_inches(2.0 * len(series), 3.0)
        axes = grid(figure, len(panels) * len(series), per_row)
        room = int(11 * figure.get_size_inches()[0] / per_row) - 4  # characters of a column's head
        names = [textwrap.fill(name, room) for name in shorten([one.label for one in series], 2 * room)]
        for index, panel in enumerate(panels):
            row = axes[index * len(series) : (index + 1) * len(series)]
            for ax, one in zip(row, series, strict=True):
                _draw_position_panel(ax, one, panel, steps, k)
        if several:
            for start in range(0, len(axes), len(series)):
                _join_row(axes[start : start + len(series)], axes[-len(series) :])
            for ax, name, one in zip(axes, names, series, strict=False):
                _head_column(ax, name, one.style.color)
        rows = len(panels) if several else -(-len(panels) // per_row)
        metrics = [metric for panel in panels for metric in panel.metrics]
        note = seed_note(series, lines=False) or interval_note(table, metrics)
        if len(steps) > 3 and "Bands" in note:
            note += " Only the first and the last step have one drawn."
        if len(steps) > _NAMED_STEPS:
            note += " Steps between those named have shades between."
        finish(
            figure,
            title=f"{title} by position at {states_phrase(table)}",
            note=f"Each point is the mean of one bin of positions{sparse}. {note} "
            f"{single_overlap_note(table, metrics)}".strip(),
            rows=rows,
            row_height=1.27 if several else 1.62,
            fixed=step_entries(steps, house.MUTED if several else series[0].style.color),
        )
    return figure


def step_order(table: pd.DataFrame) -> list[float]:
    """The distinct steps in ascending order, NaN (unknown) last."""
    steps = numbers(table, "step")
    unknown = [float("nan")] if np.isnan(steps).any() else []
    return [*map(float, np.unique(steps[~np.isnan(steps)])), *unknown]


def step_name(step: float) -> str:
    return "step unknown" if np.isnan(step) else f"step {step:g}"


def step_entries(steps: Sequence[float], color: str) -> list[Entry]:
    """Legend of the shades: all of a few steps, else evenly chosen ones with both ends."""
    ramp = house.shades(color, len(steps))
    chosen = range(len(steps))
    if len(steps) > _NAMED_STEPS:
        chosen = [round(i) for i in np.linspace(0, len(steps) - 1, _NAMED_STEPS - 1)]  # type: ignore[assignment]
    return [Entry(step_name(steps[i]), ramp[i], marker=_marker(i, len(steps))) for i in chosen]


def _marker(index: int, count: int) -> str:
    """A marker for each of a few shades. Many are ordered by lightness alone; markers would hide them."""
    return house.MARKERS[index] if count <= _NAMED_STEPS else "None"


def _draw_position_panel(ax: Axes, one: Series, panel: Panel, steps: Sequence[float], k: int) -> None:
    ramp = house.shades(one.style.color, len(steps))
    why = why_missing(one.rows, panel.metrics)
    if why:
        title_panel(ax, panel, k)
        not_available(ax, why)
        return
    curves = []
    held = numbers(one.rows, "step")
    for index, step in enumerate(steps):
        rows = one.rows[np.isnan(held) if np.isnan(step) else held == step]
        for role, metric in enumerate(panel.metrics):
            if len(rows):
                curves.append(_position_curve(one, rows, metric, role, step, index, len(steps), ramp[index]))
    remark = draw_panel(ax, curves, where="position", names=lambda place: f"{place:.0f}")
    title_panel(ax, panel, k, remark)
    dress_metric(ax, panel.metrics[0])
    ax.margins(x=0.03)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.set_xlabel("position (tokens)")


def _position_curve(
    one: Series, rows: pd.DataFrame, metric: str, role: int, step: float, index: int, count: int, color: str
) -> Curve:
    return Curve(
        f"{metric}:{one.label}:{step_name(step)}",
        numbers(rows, "position"),
        *metric_columns(rows, metric),
        color,
        _marker(index, count),
        house.DASHED if role else house.SOLID,
        filled=role == 0,
        width=house.LINE_WIDTH if count <= _NAMED_STEPS else 1.0,
        band=keep_bands(index, count),
        order=index,
        second=role == 1,
    )


def _join_row(row: Sequence[Axes], last: Sequence[Axes]) -> None:
    """One metric across the runs: common y limits, one title at the left, x labels on the last row."""
    drawn = [ax for ax in row if ax.lines]
    if drawn:
        low = min(ax.get_ylim()[0] for ax in drawn)
        high = max(ax.get_ylim()[1] for ax in drawn)
        for ax in drawn:
            ax.set_ylim(low, high)
    for ax in row[1:]:
        ax.set_title("", loc="left")
        ax.set_ylabel("")
        for text in [t for t in ax.texts if t.get_gid() == "subtitle" and "∞" not in t.get_text()]:
            text.remove()
    for ax, below in zip(row, last, strict=True):
        if ax is not below and below.lines:
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)


def _head_column(ax: Axes, name: str, color: str) -> None:
    head = ax.annotate(
        name,
        (0, 1),
        xytext=(0, 27),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left",
        va="bottom",
    )
    head.set(color=house.mix(color, "black", 0.2), fontsize=house.PANEL_SIZE, fontweight="bold", gid="column-head")
