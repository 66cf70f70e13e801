"""Mass by rank, overlap mass by k, and the k needed for 97 and 99 %."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opd_probe.errors import InputError
from opd_probe.plots import plot_mass

from .examples import LONG_NAMES, STEPS, crowd_table, lab_table, mass_table
from .looking import band, drawn, legend_labels, line, look, note, panel, remarks, untidy_texts

TAIL = "Mass outside the k most probable tokens"
OVERLAP = "Mass of the overlap of the two top-k sets"


def test_tails_are_one_minus_mass_on_log_axes() -> None:
    table = mass_table()
    ax = panel(plot_mass(table), TAIL)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    rows = table.query("run == 'compatible' and step == 100")
    key = "teacher_topk_mass:compatible:step 100"
    np.testing.assert_array_equal(line(ax, key).get_xdata(), np.arange(1, 65))
    np.testing.assert_allclose(line(ax, key).get_ydata(), 1 - rows.teacher_topk_mass)
    _, low, high = band(ax, key)
    np.testing.assert_allclose(low, 1 - rows.teacher_topk_mass_hi)
    np.testing.assert_allclose(high, 1 - rows.teacher_topk_mass_lo)
    assert {text.get_text() for text in ax.texts} >= {"97 %", "99 %"}
    levels = [float(np.asarray(one.get_ydata())[0]) for one in ax.lines if one.get_gid() == "reference"]
    np.testing.assert_allclose(levels, [0.03, 0.01])


def test_overlap_mass_by_k() -> None:
    table = mass_table(("compatible",), (0,))
    figure = plot_mass(table)
    ax = panel(figure, OVERLAP)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    student = line(ax, "student_overlap_mass:compatible:step 0")
    np.testing.assert_array_equal(student.get_ydata(), table.student_overlap_mass)
    assert student.get_linestyle() == "-"
    assert line(ax, "teacher_overlap_mass:compatible:step 0").get_linestyle() == "--"
    assert ax.get_xlabel() == "k (tokens)"
    assert "student-visited states (on-policy)" in figure.get_suptitle()


def test_first_and_last_step_unless_all_are_asked_for() -> None:
    table = mass_table(("compatible",), (0, 20, 50, 100))
    ends = panel(plot_mass(table), TAIL)
    assert {str(one.get_gid()).rsplit(":", 1)[1] for one in drawn(ends)} == {"step 0", "step 100"}
    every = panel(plot_mass(table, steps="all"), TAIL)
    assert len(drawn(every)) == 8
    assert legend_labels(plot_mass(table)) == ["compatible", "step 0", "step 100"]


def test_k_needed_with_share_beyond() -> None:
    overlap = lab_table()
    figure = plot_mass(mass_table(), overlap)
    ax = panel(figure, "k needed for 97 %")
    rows = overlap.query("run == 'compatible'")
    for kind in ("median", "p90"):
        one = line(ax, f"student_k_for_0.97_{kind}:compatible")
        np.testing.assert_array_equal(one.get_xdata(), STEPS)
        np.testing.assert_array_equal(one.get_ydata(), rows[f"student_k_for_0.97_{kind}"])
    assert ax.get_yscale() == "log"
    assert "0.4 % of states need more than K = 64" in remarks(ax)
    assert "3.1 % of states" in remarks(panel(figure, "k needed for 99 %"))
    assert "thick = median" in note(figure)
    none = plot_mass(
        mass_table(), overlap.assign(**{f"{s}_k_for_0.97_share_beyond": 0.0 for s in ("student", "teacher")})
    )
    assert "no state needs more than K = 64" in remarks(panel(none, "k needed for 97 %"))


def test_quantiles_beyond_the_traces_k_are_marked_at_the_top() -> None:
    overlap = lab_table().assign(**{"student_k_for_0.99_p90": np.nan, "student_k_for_0.99_share_beyond": 0.2})
    ax = panel(plot_mass(mass_table(), overlap), "k needed for 99 %")
    marks = [one for one in ax.lines if one.get_gid() == "infinite:student_k_for_0.99_p90:compatible"]
    assert [list(np.asarray(one.get_xdata())) for one in marks] == [list(STEPS)]
    assert "3.1-20 % of states need more than K = 64" in remarks(ax)


def test_whole_mass_in_the_first_ranks_leaves_a_gap_not_an_error() -> None:
    table = mass_table(("compatible",), (0,))
    masses = [column for column in table.columns if "topk_mass" in column]
    table.loc[table.k > 8, masses] = 1.0
    ax = panel(plot_mass(table), TAIL)
    y = np.asarray(line(ax, "student_topk_mass:compatible:step 0").get_ydata())
    assert np.isnan(y[8:]).all()
    assert ax.get_ylim()[0] > 0
    table[masses] = 1.0
    assert "not available" in panel(plot_mass(table), TAIL).texts[-1].get_text()


def test_series_survive_grey() -> None:
    for ax in plot_mass(mass_table(), lab_table()).axes:
        assert len({look(one) for one in drawn(ax)}) == len(drawn(ax))


@pytest.mark.parametrize(
    ("table", "overlap", "columns"),
    [
        (mass_table(), lab_table(), 2),
        (mass_table(), lab_table((*STEPS, None)), 1),
        (mass_table(("compatible",), (None,)), lab_table((None,)), 2),
        (mass_table(LONG_NAMES), crowd_table(), 2),
        (mass_table(largest=5), None, 2),
    ],
    ids=["lab", "one column", "unknown step", "crowd", "small K"],
)
def test_no_text_over_text(table: pd.DataFrame, overlap: pd.DataFrame | None, columns: int) -> None:
    assert untidy_texts(plot_mass(table, overlap, columns=columns)) == []


def test_bad_tables() -> None:
    with pytest.raises(InputError, match="mass table: no column 'teacher_overlap_mass'"):
        plot_mass(mass_table().drop(columns="teacher_overlap_mass"))
    with pytest.raises(InputError, match=r"k-for table: no column 'student_k_for_0\.97_median'"):
        plot_mass(mass_table(), lab_table().drop(columns="student_k_for_0.97_median"))
    with pytest.raises(InputError, match="mass table: expected at least one row"):
        plot_mass(mass_table().iloc[:0])
    with pytest.raises(InputError, match="steps = 'ends' or 'all', got 'some'"):
        plot_mass(mass_table(), steps="some")  # type: ignore[arg-type]
