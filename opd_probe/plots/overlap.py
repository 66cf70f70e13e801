"""The headline figure: do the two models' top-k sets meet, how much mass lies there, and does accuracy
follow?"""

from __future__ import annotations

import numpy as np
import pandas as pd

import opd_probe.plots.style as house
from opd_probe.plots.labels import panel_of
from opd_probe.plots.layout import panels_per_row
from opd_probe.plots.steps import draw_steps
from opd_probe.plots.tables import check_table, numbers, states_phrase

_PANELS = (
    panel_of("overlap_ratio"),
    panel_of("student_overlap_mass", "teacher_overlap_mass"),
    panel_of("overlap_advantage"),
)
_ACCURACY = panel_of("accuracy")


def plot_overlap(table: pd.DataFrame, *, x: str = "step", columns: int = 2) -> house.HouseFigure:
    """Overlap ratio, overlap masses, overlap advantage and (when known) accuracy over training steps.

    Args:
        table: one row per (run, teacher, step), as ``opd-probe overlap`` makes it: ``run``, ``teacher``,
            ``step``, ``k``, ``states``, and each metric with ``_lo`` and ``_hi``; a step may be missing. With a
            column ``seed``: one row per seed.
        x: the numeric column on the x axis.
        columns: width of the figure, 1 or 2 columns of a paper.

    Returns:
        One line per (run, teacher), the same colour for a run everywhere; band = the interval of the table. Of
        several seeds: each as a thin line, and their mean.

    Raises:
        InputError: no rows, a column that is not there, several k, or two rows for one point.
    """
    panels = [*_PANELS]
    check_table("overlap", table, ["run", "teacher", x, "k", "states", *(m for p in panels for m in p.metrics)])
    if np.isfinite(numbers(table, "accuracy")).any():
        panels.append(_ACCURACY)
    return draw_steps(
        table,
        panels,
        x=x,
        columns=columns,
        per_row=panels_per_row(len(panels), columns),
        row_height=1.95,
        name="overlap",
        title=f"Top-k overlap at {states_phrase(table)}",
    )
