"""Does the reward tell right from wrong: the sequence mean reward of correct and of incorrect rollouts."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import opd_probe.plots.style as house
from opd_probe.digits import digits, with_interval
from opd_probe.errors import InputError
from opd_probe.plots.layout import Entry, finish, grid, panels_per_row
from opd_probe.plots.panels import not_available, subtitle
from opd_probe.plots.series import Series, split_runs, split_seeds
from opd_probe.plots.tables import Floats, check_table, numbers

_BINS = 24
_CORRECT, _INCORRECT = house.COLORS[0], house.COLORS[1]


def plot_rewards(
    table: pd.DataFrame,
    auroc_table: pd.DataFrame | None = None,
    *,
    columns: int = 2,
    title: str = "Sequence mean reward of correct and incorrect rollouts",
) -> house.HouseFigure:
    """Two histograms per run and teacher on one axis: correct rollouts filled, incorrect ones outlined.

    Args:
        table: one row per rollout: ``run``, ``teacher``, ``sequence_mean_reward`` (nats per token) and ``correct``
            (0 or 1, missing when unknown); of one step. Rollouts of several seeds are pooled.
        auroc_table: the overlap table of the same step, of which ``reward_auroc`` with ``_lo`` and ``_hi`` is written
            into the panels: of several seeds each value.
        columns: width of the figure, 1 or 2 columns of a paper.
        title: of the figure.

    Raises:
        InputError: no rows, a column that is not there, or rollouts of several steps.
    """
    check_table("rewards", table, ["run", "teacher", "sequence_mean_reward", "correct"])
    if auroc_table is not None:
        check_table("auroc", auroc_table, ["run", "teacher", "reward_auroc"])
    if "step" in table.columns and len(table["step"].drop_duplicates()) > 1:
        steps = ", ".join(map(str, table["step"].drop_duplicates()))
        raise InputError(f"rewards table: expected rollouts of one step, got those of steps {steps}; pass one of them")
    series = split_runs(table.assign(states="unknown"))
    values = numbers(table, "sequence_mean_reward")
    finite = values[np.isfinite(values)]
    edges = _edges(finite)
    with house.house_style():
        figure = house.new_figure(columns)
        per_row = panels_per_row(len(series), columns)
        axes = grid(figure, len(series), per_row)
        for ax, one in zip(axes, series, strict=True):
            _draw_panel(ax, one, edges, _auroc_phrase(one, auroc_table))
        drawn = [ax for ax in axes if ax.patches]
        if drawn:
            top = max(ax.get_ylim()[1] for ax in drawn)
            for ax in drawn:
                ax.set_ylim(0, top)
        finish(
            figure,
            title=title,
            note=_note(series, int((~np.isfinite(values)).sum())),
            rows=-(-len(series) // per_row),
            row_height=2.0,
            fixed=[Entry("correct", _CORRECT, width=5.0), Entry("incorrect", _INCORRECT, house.DASHES[2])],
        )
    return figure


def _edges(values: Floats) -> Floats:
    """Edges of the bins, the same in every panel; the last per cent at each end shares the outer bins."""
    if not len(values):
        return np.array([-1.0, 0.0])
    low, high = np.quantile(values, [0.005, 0.995])
    return np.linspace(low, high if high > low else low + 1.0, _BINS + 1)


def _draw_panel(ax: Axes, one: Series, edges: Floats, auroc: str) -> None:
    ax.set_title(textwrap.shorten(one.label, 60), loc="left")
    reward, correct = numbers(one.rows, "sequence_mean_reward"), numbers(one.rows, "correct")
    known = np.isfinite(reward) & np.isfinite(correct)
    if not known.any():
        subtitle(ax, auroc)
        not_available(ax, "no rollout with a known score")
        return
    for name, color, wanted in (("correct", _CORRECT, True), ("incorrect", _INCORRECT, False)):
        chosen = reward[known & ((correct >= 0.5) == wanted)]
        if not len(chosen):
            continue
        counts = np.histogram(np.clip(chosen, edges[0], edges[-1]), edges)[0] / len(chosen)
        outline = ax.stairs(counts, edges, fill=wanted, zorder=2 if wanted else 2.5)
        if wanted:
            outline.set(facecolor=house.mix(color, "white", 0.5), linewidth=0)
        else:
            outline.set(edgecolor=color, linewidth=1.3, linestyle=house.DASHES[2])
        outline.set_gid(f"{name}:{one.label}")
        mean = ax.axvline(float(chosen.mean()), color=house.mix(color, "black", 0.2), linewidth=house.THIN, zorder=3)
        mean.set(gid=f"mean:{name}:{one.label}", linestyle="-" if wanted else house.DASHES[2])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("sequence mean reward (nats per token)")
    ax.set_ylabel("share of the class")
    n_correct = int((correct[known] >= 0.5).sum())
    subtitle(
        ax, "\n".join(part for part in (auroc, f"{n_correct} correct, {known.sum() - n_correct} incorrect") if part)
    )


def _auroc_phrase(one: Series, table: pd.DataFrame | None) -> str:
    if table is None:
        return ""
    same = (table["run"].astype(str) == one.run) & (table["teacher"].astype(str) == one.teacher)
    rows = table[same.to_numpy()]
    values, lows, highs = (numbers(rows, f"reward_auroc{end}") for end in ("", "_lo", "_hi"))
    if not np.isfinite(values).any():
        return "AUROC unknown: one class only"
    if len(values) > 1:
        ends = float(np.nanmin(values)), float(np.nanmax(values))
        shown = (digits(float(value), *ends)[0] if np.isfinite(value) else "–" for value in values)
        return f"AUROC {' · '.join(shown)} (one per seed)"
    return f"AUROC {with_interval(*(float(value[0]) for value in (values, lows, highs)))}"


def _note(series: list[Series], unknown: int) -> str:
    seeds = max(len(split_seeds(one.rows)) for one in series)
    note = f"Rollouts of {seeds} seeds together. " if seeds > 1 else ""
    note += "Vertical lines: means of the classes. The outermost bins hold all beyond them."
    return note + (f" {unknown} rollouts without a finite reward are left out." if unknown else "")
