"""Bars: one number for each model or run, with every seed as a dot on its bar."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import opd_probe.plots.style as house
from opd_probe.digits import digits, true_minus
from opd_probe.errors import InputError
from opd_probe.plots.labels import METRICS, Label
from opd_probe.plots.layout import finish, grid
from opd_probe.plots.panels import not_available, subtitle, why_missing
from opd_probe.plots.series import shorten, split_seeds
from opd_probe.plots.tables import check_table, check_unique, interval_note, metric_columns

_GAP = 0.85  # bars of room that the name of a group takes


@dataclass(frozen=True)
class Bar:
    """One bar: where it lies, and the rows (one per seed) that it stands for."""

    model: str
    group: str
    place: float
    style: house.SeriesStyle
    rows: pd.DataFrame


def plot_bars(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("accuracy",),
    columns: int = 1,
    title: str = "",
) -> house.HouseFigure:
    """Horizontal bars, named at the left, one panel per metric.

    Args:
        table: one row per bar, or with a column ``seed`` one per bar and seed: ``model`` names the bar, ``group``
            (optional) the bars that stand together, and each metric has ``_lo`` and ``_hi`` where it has an interval.
        metrics: columns to draw.
        columns: width of the figure, 1 or 2 columns of a paper.
        title: of the figure; default: the metrics.

    Returns:
        A bar as long as the mean over seeds, a dot for each seed; of one seed, its interval.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one bar.
    """
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"plot_bars: expected metrics to be a list of column names, got {metrics!r}")
    check_table("bars", table, ["model", *metrics])
    keys = ["group", "model"] if "group" in table.columns else ["model"]
    check_unique("bars", table, keys)
    bars = split_bars(table)
    labels = [METRICS.get(metric, Label(metric.replace("_", " ").capitalize(), "value")) for metric in metrics]
    with house.house_style():
        figure = house.new_figure(columns)
        axes = grid(figure, len(metrics), len(metrics) if columns == 2 else 1)
        for index, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
            draw_bars(ax, bars, metric, named=index == 0 or columns == 1)
        finish(
            figure,
            title=title or ", ".join(label.title for label in labels),
            note=bars_note(table, bars, metrics),
            rows=len(metrics) if columns == 1 else 1,
            row_height=0.75 + (0.12 + 0.12 * max(name.count("\n") + 1 for name in _names(bars))) * (bars[-1].place + 1),
        )
    return figure


def split_bars(table: pd.DataFrame) -> list[Bar]:
    """The bars in the order in which they appear, groups apart; a model has one colour in every group."""
    groups = table["group"].astype(str) if "group" in table.columns else pd.Series("", index=table.index)
    models = table["model"].astype(str)
    colors = {model: index for index, model in enumerate(dict.fromkeys(models))}
    bars: list[Bar] = []
    place = 0.0
    for group in dict.fromkeys(groups):
        place += _GAP if group else 0.0
        for model in dict.fromkeys(models[groups == group]):
            rows = table[((groups == group) & (models == model)).to_numpy()]
            bars.append(Bar(model, group, place, house.series_style(colors[model], colors[model]), rows))
            place += 1.0
    return bars


def draw_bars(ax: Axes, bars: Sequence[Bar], metric: str, *, named: bool = True) -> None:
    """The bars of one metric with their dots, intervals and values."""
    label = METRICS.get(metric, Label(metric.replace("_", " ").capitalize(), "value"))
    ax.set_title(label.title, loc="left")
    subtitle(ax, label.reading)
    why = why_missing(pd.concat([bar.rows for bar in bars]), [metric])
    if why:
        not_available(ax, why)
        return
    far = 0.0
    for bar in bars:
        far = max(far, _draw_bar(ax, bar, metric))
    low = ax.get_xlim()[0]
    ax.set_xlim(low, far + 0.14 * (far - low))  # room for the values
    ax.axvline(0.0, color=house.MUTED, linewidth=0.6, zorder=3, gid="reference")
    ax.set_ylim(bars[-1].place + 0.6, -0.6)
    names = _names(bars) if named else [""] * len(bars)
    ax.set_yticks([bar.place for bar in bars], names)
    ax.tick_params(axis="y", length=0, labelcolor=house.INK)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(label.unit)
    if named:
        _name_groups(ax, bars)


def _names(bars: Sequence[Bar]) -> list[str]:
    """The names of the bars, long ones in several lines."""
    return [textwrap.fill(name, 22) for name in shorten([bar.model for bar in bars], 44)]


def _draw_bar(ax: Axes, bar: Bar, metric: str) -> float:
    """Draws one bar; returns how far to the right it reaches with all that lies on it."""
    seeds = split_seeds(bar.rows)
    values, lows, highs = metric_columns(pd.concat(seeds.values()), metric)
    finite = values[np.isfinite(values)]
    if not len(finite):
        text = ax.text(0.0, bar.place, " not measured", va="center")
        text.set(color=house.MUTED, fontsize=house.SMALL_SIZE, gid="value")
        return 0.0
    mean = float(finite.mean())
    color = bar.style.color
    (patch,) = ax.barh(bar.place, mean, height=0.72, color=house.mix(color, "white", 0.45), linewidth=0, zorder=1.5)
    patch.set_gid(f"{metric}:{bar.group}:{bar.model}")
    reach = [mean, *finite]
    if len(seeds) > 1:
        offsets = np.linspace(-0.2, 0.2, len(values))
        (dots,) = ax.plot(values, bar.place + offsets, linestyle="none", marker="o", markersize=3, zorder=2.5)
        dots.set(color=house.mix(color, "black", 0.25), gid=f"seeds:{metric}:{bar.group}:{bar.model}")
    elif np.isfinite(lows[0]) and np.isfinite(highs[0]):
        ends = ax.hlines(bar.place, lows[0], highs[0], color=house.mix(color, "black", 0.25), linewidth=1.2, zorder=2.5)
        ends.set_gid(f"interval:{metric}:{bar.group}:{bar.model}")
        reach += [lows[0], highs[0]]
    right = float(max(0.0, *reach))
    spread = (finite.min(), finite.max()) if len(seeds) > 1 else (lows[0], highs[0])
    known = np.isfinite(spread).all()
    shown = true_minus(digits(mean, *map(float, spread))[0] if known else digits(mean)[0])
    value = ax.annotate(shown, (right, bar.place), xytext=(4, 0), textcoords="offset points")
    value.set(va="center", fontsize=house.SMALL_SIZE, color=house.INK, gid="value")
    return right


def _name_groups(ax: Axes, bars: Sequence[Bar]) -> None:
    for group in dict.fromkeys(bar.group for bar in bars if bar.group):
        first = min(bar.place for bar in bars if bar.group == group)
        head = ax.text(0.0, first - 0.62, group, transform=ax.get_yaxis_transform(), va="bottom", ha="left")
        head.set(fontsize=house.SMALL_SIZE + 0.5, fontweight="bold", color=house.INK, gid="group")


def bars_note(table: pd.DataFrame, bars: Sequence[Bar], metrics: Sequence[str]) -> str:
    """What dots and lines on the bars mean."""
    counts = sorted({len(split_seeds(bar.rows)) for bar in bars})
    if counts == [1]:
        return interval_note(table, metrics, "Lines")
    span = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Bars: mean over {span} seeds; dots: the seeds."
