"""The overview: what runs recover of the gap, how overlap develops, and where accuracy goes, in one row."""

from __future__ import annotations

from typing import Any

import pandas as pd

import opd_probe.plots.style as house
from opd_probe.plots.bars import Bar, draw_bars, split_bars
from opd_probe.plots.labels import Panel, panel_of
from opd_probe.plots.layout import finish, grid, label_directly
from opd_probe.plots.series import Series, split_seeds
from opd_probe.plots.steps import StepAxis, draw_step_panel, step_series
from opd_probe.plots.tables import check_table, check_unique, single_k, states_phrase


def plot_overview(
    recovery: pd.DataFrame,
    overlap: pd.DataFrame,
    accuracy: pd.DataFrame,
    *,
    title: str = "Overview",
    headings: tuple[str, str, str] = ("Gap recovery", "Overlap ratio", "Accuracy"),
) -> house.HouseFigure:
    """Three panels: bars of gap recovery, overlap ratio over steps, accuracy over steps.

    Args:
        recovery: as for :func:`plot_bars`, with ``gap_recovery``.
        overlap, accuracy: as for :func:`plot_alignment`, each with its own runs.
        title: the beginning of the title; whose states are shown is added.
        headings: what the panels are called, after their letters.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one bar or point.
    """
    check_table("bars", recovery, ["model", "gap_recovery"])
    check_unique("bars", recovery, ["group", "model"] if "group" in recovery.columns else ["model"])
    bars = split_bars(recovery)
    parts = [(overlap, panel_of("overlap_ratio")), (accuracy, panel_of("accuracy"))]
    for table, panel in parts:
        check_table("overlap", table, ["run", "teacher", "step", "k", *panel.metrics])
    with house.house_style():
        figure = house.new_figure(2)
        axes = grid(figure, 3, 3)
        draw_bars(axes[0], bars, "gap_recovery")
        drawn = [_draw_steps(ax, *part) for ax, part in zip(axes[1:], parts, strict=True)]
        for letter, heading, ax in zip("abc", headings, axes, strict=True):
            ax.set_title(f"{letter}  {heading}", loc="left")
        finish(
            figure,
            title=f"{title} at {states_phrase(pd.concat([overlap, accuracy]))}",
            note=_note(bars, [one for series in drawn for one in series]),
            rows=1,
            row_height=2.1,
        )
        engine: Any = figure.get_layout_engine()
        engine.execute(figure)
        for ax, series in zip(axes[1:], drawn, strict=True):
            if len(series) > 1 and not label_directly(ax, series):
                lines = [line for one in series for line in ax.lines if str(line.get_gid()).endswith(f":{one.label}")]
                low, high = ax.get_ylim()
                ax.set_ylim(low, high + 0.12 * (high - low) * (len(series) - 1))
                ax.legend(lines, [one.label for one in series], loc="upper left", fontsize=house.SMALL_SIZE)
    return figure


def _draw_steps(ax: Any, table: pd.DataFrame, panel: Panel) -> list[Series]:
    series = step_series("overlap", table, "step")
    draw_step_panel(ax, panel, table, series, StepAxis.of(table, "step"), "step", single_k("overlap", table))
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.18 * (high - low))  # room for the names
    return series


def _note(bars: list[Bar], series: list[Series]) -> str:
    several = any(one.seeds for one in series) or any(len(split_seeds(bar.rows)) > 1 for bar in bars)
    if several:
        return "Dots and thin lines: seeds; bars and thick lines: their mean."
    return "Lines on bars and bands: 95 % interval over prompts."
