"""Concentration: how few tokens hold 97-99 % of the mass, and how much of it the two models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import opd_probe.plots.style as house
from opd_probe.errors import InputError
from opd_probe.plots.alignment import step_name, step_order
from opd_probe.plots.layout import Entry, finish, grid, series_entries
from opd_probe.plots.panels import Curve, draw_panel, not_available, subtitle
from opd_probe.plots.series import Series, seed_note, split_series
from opd_probe.plots.steps import StepAxis
from opd_probe.plots.tables import (
    Floats,
    check_table,
    check_unique,
    interval_note,
    metric_columns,
    numbers,
    states_phrase,
)

_SIDES = ("student", "teacher")
_LEVELS = ("0.97", "0.99")
_FLOOR = 1e-6  # mass outside the top k below which float32 says nothing
_ROLES = "solid: student, dashed: teacher"


def plot_mass(
    mass_table: pd.DataFrame,
    k_for_table: pd.DataFrame | None = None,
    *,
    steps: Literal["ends", "all"] = "ends",
    columns: int = 2,
) -> house.HouseFigure:
    """Cumulative mass by rank, overlap mass by k, and the k that a state needs for 97 % and 99 %.

    Args:
        mass_table: one row per (run, teacher, step, k), k = 1 … K: ``student_topk_mass``,
            ``teacher_topk_mass``, ``student_overlap_mass``, ``teacher_overlap_mass``, each with ``_lo`` and
            ``_hi``.
        k_for_table: the overlap table, of which ``student_k_for_0.97_median``, ``_p90``, ``_share_beyond``
            and their kin are drawn; without it the figure has the first two panels only.
        steps: ``ends`` draws the first and last step of each run by rank, ``all`` every one.
        columns: width of the figure, 1 or 2 columns of a paper.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one point.
    """
    by_rank = [f"{side}_{kind}_mass" for kind in ("topk", "overlap") for side in _SIDES]
    check_table("mass", mass_table, ["run", "teacher", "step", "k", *by_rank])
    check_unique("mass", mass_table, ["run", "teacher", "step", "k"])
    if k_for_table is not None:
        check_table("k-for", k_for_table, ["run", "teacher", "step", *_k_for_columns()])
        check_unique("k-for", k_for_table, ["run", "teacher", "step"])
    if steps not in ("ends", "all"):
        raise InputError(f"plot_mass: expected steps = 'ends' or 'all', got {steps!r}")
    largest = int(np.nanmax(numbers(mass_table, "k")))
    series = split_series(mass_table, "k", ("step", "k"))
    with house.house_style():
        figure = house.new_figure(columns)
        axes = grid(figure, 2 if k_for_table is None else 4, 2 if columns == 2 else 1)
        _draw_tail(axes[0], _rank_curves(series, "topk", steps))
        _draw_overlap(axes[1], _rank_curves(series, "overlap", steps))
        for ax in axes[:2]:
            _dress_rank(ax, largest)
        note = (seed_note(series, lines=False) or interval_note(mass_table, by_rank)) + " Grey: mass of 97 and 99 %."
        if k_for_table is not None:
            for ax, level in zip(axes[2:], _LEVELS, strict=True):
                _draw_k_for(ax, k_for_table, level, largest)
            note += " Below: thick = median over states, thin = 90th percentile, ▲ = beyond the trace's K."
        finish(
            figure,
            title=f"Mass concentration at {states_phrase(mass_table)}",
            note=note,
            rows=len(axes) // (2 if columns == 2 else 1),
            row_height=2.0,
            fixed=[*(series_entries_of(series)), *_step_entries(series, steps)],
        )
    return figure


def series_entries_of(series: Sequence[Series]) -> list[Entry]:
    """Names of the series by colour and marker; the dash is free here, for it tells student from teacher."""
    return [Entry(e.label, e.color, house.SOLID, e.marker) for e in series_entries(series)]


def _k_for_columns() -> list[str]:
    kinds = ("median", "p90", "share_beyond")
    return [f"{side}_k_for_{level}_{kind}" for side in _SIDES for level in _LEVELS for kind in kinds]


def _drawn_steps(one: Series, steps: str) -> list[float]:
    found = step_order(one.rows)
    return found if steps == "all" or len(found) < 3 else [found[0], found[-1]]


def _rank_curves(series: Sequence[Series], kind: str, steps: str) -> list[Curve]:
    curves = []
    for one in series:
        drawn = _drawn_steps(one, steps)
        held = numbers(one.rows, "step")
        for step, color in zip(drawn, house.shades(one.style.color, len(drawn)), strict=True):
            rows = one.rows[np.isnan(held) if np.isnan(step) else held == step]
            for side in _SIDES:
                metric = f"{side}_{kind}_mass"
                curves.append(
                    Curve(
                        f"{metric}:{one.label}:{step_name(step)}",
                        numbers(rows, "k"),
                        *metric_columns(rows, metric),
                        color,
                        one.style.marker,
                        house.SOLID if side == "student" else house.DASHED,
                        filled=side == "student",
                        width=0.9 if step == drawn[0] and len(drawn) > 1 else 1.6,
                    )
                )
    return curves


def _outside(values: Floats) -> Floats:
    """1 − mass, NaN where nothing measurable is left: a log axis has no zero."""
    rest = 1.0 - values
    return np.where(rest > _FLOOR, rest, np.nan)


def _draw_tail(ax: Axes, curves: Sequence[Curve]) -> None:
    """Mass outside the k most probable tokens on two log axes: the eye sees 97 % and 99 %."""
    ax.set_title("Mass outside the k most probable tokens", loc="left")
    tails = []
    for curve in curves:
        lo, hi = np.maximum(1.0 - curve.hi, _FLOOR), 1.0 - curve.lo
        tails.append(Curve(**{**curve.__dict__, "y": _outside(curve.y), "lo": lo, "hi": hi}))
    if not any(np.isfinite(tail.y).any() for tail in tails):
        not_available(ax, "no mass outside the top k")
        return
    draw_panel(ax, tails, where="k", names=lambda k: f"{k:g}")
    ax.set_yscale("log")
    subtitle(ax, _ROLES)
    for level in (0.97, 0.99):
        ax.axhline(1 - level, color=house.REFERENCE, linewidth=house.THIN, zorder=1, gid="reference")
        name = ax.text(1.01, 1 - level, f"{100 * level:.0f} %", transform=ax.get_yaxis_transform(), va="center")
        name.set(fontsize=house.SMALL_SIZE, color=house.MUTED, gid="reference")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylabel("1 − mass (probability)")


def _draw_overlap(ax: Axes, curves: Sequence[Curve]) -> None:
    ax.set_title("Mass of the overlap of the two top-k sets", loc="left")
    if not any(np.isfinite(curve.y).any() for curve in curves):
        not_available(ax, "not measured in these traces")
        return
    draw_panel(ax, curves, where="k", names=lambda k: f"{k:g}")
    subtitle(ax, _ROLES)
    ax.axhspan(0.97, 0.99, color=house.REFERENCE, alpha=0.18, linewidth=0, zorder=0.5).set_gid("reference")
    ax.set_ylabel("overlap mass (probability)")


def _dress_rank(ax: Axes, largest: int) -> None:
    if not ax.lines:
        return
    ax.set_xscale("log", base=2)
    ticks = [2**power for power in range(int(np.log2(largest)) + 1)]
    if largest not in ticks:
        ticks = [tick for tick in ticks if tick < 0.75 * largest] + [largest]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("k (tokens)")
    for line in ax.lines:
        k = np.asarray(line.get_xdata(), float)
        if len(k) > 2:  # markers at powers of two: evenly spaced on this axis
            line.set_markevery([index for index, value in enumerate(k) if value in ticks])


def _step_entries(series: Sequence[Series], steps: str) -> list[Entry]:
    drawn = [_drawn_steps(one, steps) for one in series]
    if all(len(found) == 1 for found in drawn):
        return []
    if all(found == drawn[0] for found in drawn) and len(drawn[0]) <= 6:
        names = [step_name(step) for step in drawn[0]]
    else:
        names = ["first step", "last step"]
    ramp = house.shades(house.MUTED, len(names))
    return [Entry(n, color, width=0.9 if i == 0 else 1.6) for i, (n, color) in enumerate(zip(names, ramp, strict=True))]


def _draw_k_for(ax: Axes, table: pd.DataFrame, level: str, largest: int) -> None:
    """Median and 90th percentile of the smallest k that reaches ``level``; marked at the top beyond K."""
    percent = f"{100 * float(level):.0f} %"
    ax.set_title(f"k needed for {percent} of the mass", loc="left")
    names = {kind: [f"{side}_k_for_{level}_{kind}" for side in _SIDES] for kind in ("median", "p90", "share_beyond")}
    beyond = np.concatenate([numbers(table, name) for name in names["share_beyond"]])
    measured = np.concatenate([numbers(table, name) for kind in ("median", "p90") for name in names[kind]])
    if not np.isfinite(beyond).any() and not np.isfinite(measured).any():
        not_available(ax, "not measured in these traces")
        return
    axis = StepAxis.of(table, "step")
    curves = [
        curve
        for order, one in enumerate(split_series(table, "step"))
        for side in _SIDES
        for kind in ("p90", "median")
        for curve in _k_for_curves(one, order, f"{side}_k_for_{level}", kind, axis)
    ]
    draw_panel(ax, curves, where="step", names=axis.name)
    ax.set_yscale("log", base=2)
    ax.set_ylim(0.85, largest * 1.45)
    ticks = [2**power for power in range(int(np.log2(largest)) + 1)]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylabel("k (tokens)")
    subtitle(ax, "\n".join(part for part in (_ROLES, _beyond_phrase(beyond, largest)) if part))
    axis.dress(ax)


def _beyond_phrase(shares: Floats, largest: int) -> str:
    found = shares[np.isfinite(shares)]
    if not len(found) or not found.any():
        return f"no state needs more than K = {largest}" if len(found) else ""
    low, high = 100 * found.min(), 100 * found.max()
    span = f"{low:.2g} %" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}-{high:.2g} %"
    return f"{span} of states need more than K = {largest}"


def _k_for_curves(one: Series, order: int, stem: str, kind: str, axis: StepAxis) -> list[Curve]:
    """The known steps as a line, each unknown one as a point; +inf where the quantile lies beyond K."""
    steps, values = numbers(one.rows, "step"), numbers(one.rows, f"{stem}_{kind}")
    share = numbers(one.rows, f"{stem}_share_beyond")
    values = np.where(np.isnan(values) & (share >= (0.1 if kind == "p90" else 0.5)), np.inf, values)
    known = np.isfinite(steps)
    parts = ([np.flatnonzero(known)] if known.any() else []) + [np.array([i]) for i in np.flatnonzero(~known)]
    nothing = np.full(len(steps), np.nan)
    student = stem.startswith("student")
    return [
        Curve(
            f"{stem}_{kind}:{one.label}",
            axis.place(steps[part]),
            values[part],
            nothing[part],
            nothing[part],
            one.style.color,
            one.style.marker if kind == "median" or len(part) == 1 else "None",
            house.SOLID if student else house.DASHED,
            filled=student,
            width=house.LINE_WIDTH if kind == "median" else 0.7,
            order=order,
            second=not student,
        )
        for part in parts
    ]
