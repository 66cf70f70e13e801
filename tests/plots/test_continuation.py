"""Teacher continuation by depth, by the data of its artists."""

from __future__ import annotations

import numpy as np
import pytest

from opd_probe.errors import InputError
from opd_probe.plots import plot_continuation

from .examples import continuation_rows
from .looking import band, line, note, panel, remarks, untidy_texts

GAIN = "Gain of the teacher's continuation"


def test_gain_and_accuracies_by_depth() -> None:
    table = continuation_rows()
    figure = plot_continuation(table)
    rows = table[table.teacher == "good teacher"]
    ax = panel(figure, GAIN)
    np.testing.assert_allclose(line(ax, "gain:good teacher").get_ydata(), rows.groupby("depth").gain.mean())
    np.testing.assert_array_equal(line(ax, "gain:good teacher:seed 2").get_ydata(), rows[rows.seed == 2].gain)
    np.testing.assert_array_equal(line(ax, "gain:good teacher").get_xdata(), [0, 4, 8, 16, 24])
    assert ax.get_xlabel() == "length of the student's prefix (tokens)"
    assert [one.get_gid() for one in ax.lines].count("reference") == 1  # no gain
    both = panel(figure, "Accuracy by who continues")
    assert remarks(both) == "solid: student, dashed: teacher"
    assert line(both, "teacher_accuracy:good teacher").get_linestyle() == "--"
    assert note(figure) == "Thin: 3 seeds, thick: their mean."


def test_one_seed_has_bands_and_needs_no_run() -> None:
    table = continuation_rows((0,)).drop(columns=["seed", "run"])
    figure = plot_continuation(table)
    _, low, high = band(panel(figure, GAIN), "gain:failing teacher")
    rows = table[table.teacher == "failing teacher"]
    np.testing.assert_allclose(low, rows.gain_lo)
    np.testing.assert_allclose(high, rows.gain_hi)


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_over_text(columns: int) -> None:
    assert untidy_texts(plot_continuation(continuation_rows(), columns=columns)) == []


def test_bad_tables() -> None:
    with pytest.raises(InputError, match="continuation table: no column 'depth'"):
        plot_continuation(continuation_rows().drop(columns="depth"))
