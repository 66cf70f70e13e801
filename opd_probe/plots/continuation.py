"""How far the teacher can still help: it continues the student's responses, cut at growing depth."""

from __future__ import annotations

import pandas as pd

import opd_probe.plots.style as house
from opd_probe.plots.labels import Panel
from opd_probe.plots.steps import draw_steps
from opd_probe.plots.tables import check_table

_PANELS = (
    Panel(("gain",), "Gain of the teacher's continuation", "accuracy", (), "teacher − student, from the same prefixes"),
    Panel(("student_accuracy", "teacher_accuracy"), "Accuracy by who continues", "share", ("student", "teacher")),
)


def plot_continuation(
    table: pd.DataFrame, *, columns: int = 2, title: str = "Teacher continuation of student prefixes"
) -> house.HouseFigure:
    """The teacher's gain in accuracy over the student's own continuation, by depth of the prefix; and both accuracies.

    Args:
        table: one row per (teacher, depth), or with a column ``seed`` per (teacher, seed, depth): ``depth`` in tokens,
            ``gain``, ``student_accuracy`` and ``teacher_accuracy``, each with ``_lo`` and ``_hi`` where it is known.
            A column ``run`` tells apart what else differs.
        columns: width of the figure, 1 or 2 columns of a paper.
        title: of the figure.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one point.
    """
    check_table("continuation", table, ["teacher", "depth", *(m for p in _PANELS for m in p.metrics)])
    if "run" not in table.columns:
        table = table.assign(run=table["teacher"])
    return draw_steps(
        table,
        list(_PANELS),
        x="depth",
        columns=columns,
        per_row=columns,
        row_height=1.95,
        name="continuation",
        title=title,
    )
