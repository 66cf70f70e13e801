"""The sampled reward along the response: its quantiles by position, and the part of the signal that lies before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import opd_probe.plots.style as house
from opd_probe.plots.alignment import step_name, step_order
from opd_probe.plots.layout import Entry, finish, grid
from opd_probe.plots.panels import Curve, draw_panel, not_available, subtitle
from opd_probe.plots.series import Series, shorten, split_series
from opd_probe.plots.tables import (
    MIN_STATES,
    check_table,
    check_unique,
    interval_note,
    metric_columns,
    numbers,
    states_phrase,
)

_FANS = (("q05", "q95", 0.14), ("q25", "q75", 0.28))


def plot_depth(reward: pd.DataFrame, signal: pd.DataFrame) -> house.HouseFigure:
    """Reward by position (left) and cumulated signal by relative position (right), one row per (run, teacher).

    Args:
        reward: what :func:`opd_probe.curves.reward_by_depth` gave, with ``run``, ``teacher`` and ``step``.
        signal: what :func:`opd_probe.curves.signal_by_depth` gave, with the same columns.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one point.
    """
    keys = ["run", "teacher", "step"]
    quantiles = [f"sampled_reward_{end}" for low, high, _ in _FANS for end in (low, high)]
    check_table("reward", reward, [*keys, "position", "sampled_reward_q50", *quantiles])
    check_table("signal", signal, [*keys, "relative", "cumulative_signal"])
    check_unique("reward", reward, [*keys, "position"])
    check_unique("signal", signal, [*keys, "relative"])
    left, right = split_series(reward, "position"), split_series(signal, "relative")
    names = shorten([one.label for one in left], 40)
    with house.house_style():
        figure = house.new_figure(2)
        axes = grid(figure, 2 * len(left), 2)
        for row, name in enumerate(names):
            _draw_reward(axes[2 * row], left[row], name if len(names) > 1 else "")
            _draw_signal(axes[2 * row + 1], right[row], name if len(names) > 1 else "")
        finish(
            figure,
            title=f"Sampled-token reward along the response at {states_phrase(reward)}",
            note="Left, last step: line = median, dark band = 25-75 %, light band = 5-95 % of states; dashed: median "
            f"and 5-95 % at the first step. Bins of fewer than {MIN_STATES} states are left out. Right: share of Σ|r| "
            f"up to that part of the response; grey = evenly spread. {interval_note(signal, ['cumulative_signal'])}",
            rows=len(left),
            row_height=1.95,
            legend=_entries(right),
        )
    return figure


def _entries(series: Sequence[Series]) -> list[Entry]:
    """The first and the last step of each series, by the shades of the right panels."""
    entries = []
    for one in series:
        steps = step_order(one.rows)
        ramp = house.shades(one.style.color, len(steps))
        for at in dict.fromkeys((0, len(steps) - 1)):
            label = step_name(steps[at]) if len(series) == 1 else f"{one.label}, {step_name(steps[at])}"
            entries.append(Entry(label, ramp[at]))
    return entries


def _rows_at(one: Series, step: float) -> pd.DataFrame:
    held = numbers(one.rows, "step")
    return one.rows[np.isnan(held) if np.isnan(step) else held == step]


def _draw_reward(ax: Axes, one: Series, name: str) -> None:
    ax.set_title("Reward by position", loc="left")
    subtitle(ax, name)
    steps = step_order(one.rows)
    last = _enough(_rows_at(one, steps[-1]))
    if not np.isfinite(numbers(last, "sampled_reward_q50")).any():
        not_available(ax, "no reward is known")
        return
    ax.axhline(0.0, color=house.REFERENCE, linewidth=house.THIN, zorder=1, gid="reference")
    color = house.shades(one.style.color, max(2, len(steps)))[-1]
    x = numbers(last, "position")
    for low, high, alpha in _FANS:
        below, above = (numbers(last, f"sampled_reward_{end}") for end in (low, high))
        area = ax.fill_between(x, below, above, color=color, alpha=alpha, linewidth=0, zorder=1.5)
        area.set_gid(f"fan:{low}-{high}:{one.label}")
    (line,) = ax.plot(x, numbers(last, "sampled_reward_q50"), color=color, zorder=3)
    line.set_gid(f"sampled_reward_q50:{one.label}:{step_name(steps[-1])}")
    if len(steps) > 1:
        first = _enough(_rows_at(one, steps[0]))
        early = house.shades(one.style.color, len(steps))[0]
        for end, width in (("q05", house.THIN), ("q50", 1.2), ("q95", house.THIN)):
            y = numbers(first, f"sampled_reward_{end}")
            (line,) = ax.plot(numbers(first, "position"), y, color=early, linestyle=house.DASHED, linewidth=width)
            line.set_gid(f"sampled_reward_{end}:{one.label}:{step_name(steps[0])}")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.set_xlabel("position (tokens)")
    ax.set_ylabel("r (nats)")


def _enough(rows: pd.DataFrame) -> pd.DataFrame:
    kept = rows[rows["n_states"] >= MIN_STATES] if "n_states" in rows else rows
    return kept if len(kept) else rows


def _draw_signal(ax: Axes, one: Series, name: str) -> None:
    ax.set_title("Where the signal lies", loc="left")
    subtitle(ax, name)
    steps = step_order(one.rows)
    ramp = house.shades(one.style.color, len(steps))
    if not np.isfinite(numbers(one.rows, "cumulative_signal")).any():
        not_available(ax, "no signal")
        return
    ax.plot([0, 1], [0, 1], color=house.REFERENCE, linewidth=house.THIN, zorder=1, gid="reference")
    curves = []
    for index, step in enumerate(steps):
        rows = _rows_at(one, step)
        y, lo, hi = (np.concatenate([[0.0], values]) for values in metric_columns(rows, "cumulative_signal"))
        curves.append(
            Curve(
                f"cumulative_signal:{one.label}:{step_name(step)}",
                np.concatenate([[0.0], numbers(rows, "relative")]),
                y,
                lo,
                hi,
                ramp[index],
                "None",
                width=house.LINE_WIDTH if index in (0, len(steps) - 1) else 0.7,
                band=index in (0, len(steps) - 1),
                order=index,
            )
        )
    draw_panel(ax, curves, where="relative position", names=lambda place: f"{place:g}")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("position / response length")
    ax.set_ylabel("share of Σ|r|")
