"""Several seeds of one run: thin lines, and their mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opd_probe.errors import InputError
from opd_probe.plots import plot_alignment, plot_mass, plot_overlap

from .examples import STEPS, lab_table, mass_table, position_table, seeds_table
from .looking import drawn, legend_labels, line, note, panel, untidy_texts

TABLE = seeds_table()


def test_seeds_are_thin_lines_below_their_mean() -> None:
    figure = plot_overlap(TABLE.sample(frac=1, random_state=0))
    ax = panel(figure, "Overlap ratio")
    mean = line(ax, "overlap_ratio:compatible")
    rows = TABLE[TABLE.run == "compatible"]
    np.testing.assert_array_equal(mean.get_xdata(), STEPS)
    np.testing.assert_allclose(mean.get_ydata(), rows.groupby("step").overlap_ratio.mean())
    for seed in (0, 1, 2):
        one = line(ax, f"overlap_ratio:compatible:seed {seed}")
        np.testing.assert_array_equal(one.get_ydata(), rows[rows.seed == seed].overlap_ratio)
        assert one.get_linewidth() < mean.get_linewidth()
        assert one.get_marker() == "None"
        assert one.get_linestyle() == mean.get_linestyle()
    assert len(drawn(ax)) == 8
    assert not ax.collections  # the seeds show the spread: no band
    assert note(figure) == "Thin: 3 seeds, thick: their mean. Grey: overlap mass of 97-99 %."


def test_one_seed_keeps_its_band() -> None:
    one = TABLE[TABLE.seed == 1]
    figure = plot_overlap(one)
    assert len(panel(figure, "Overlap ratio").collections) == 2
    assert note(figure).startswith("Bands: 95 %")
    mixed = plot_overlap(TABLE[(TABLE.seed == 1) | (TABLE.run == "compatible")])
    assert len(panel(mixed, "Overlap ratio").collections) == 1
    assert note(mixed).startswith("Thin: 3 seeds, thick: their mean. Bands: 95 %")


def test_the_mean_is_drawn_where_all_seeds_are_known() -> None:
    table = TABLE[(TABLE.seed != 2) | (TABLE.step <= 50)].copy()
    table.loc[(table.seed == 0) & (table.step == 20), "entropy_gap"] = np.nan
    ax = panel(plot_alignment(table, metrics=["entropy_gap"]), "Entropy gap")
    mean = line(ax, "entropy_gap:compatible")
    np.testing.assert_array_equal(mean.get_xdata(), [0, 10, 20, 30, 40, 50])
    assert list(np.isnan(np.asarray(mean.get_ydata()))) == [False, False, True, False, False, False]
    assert len(line(ax, "entropy_gap:compatible:seed 1").get_xdata()) == 11  # type: ignore[arg-type]


def test_rows_of_a_joined_log_are_no_gap_in_the_other_curves() -> None:
    rows = lab_table().query("run == 'compatible'")
    log = pd.DataFrame({"run": "compatible", "teacher": "teacher", "step": np.arange(1, 101), "states": "own"})
    log = log.assign(loss=np.linspace(0.5, 0.1, 100), k=16)
    table = rows.merge(log, on=["run", "teacher", "step", "k", "states"], how="outer")
    figure = plot_alignment(table, metrics=["loss", "accuracy"])
    np.testing.assert_array_equal(line(panel(figure, "Training loss"), "loss:compatible").get_xdata(), log.step)
    np.testing.assert_array_equal(line(panel(figure, "Accuracy"), "accuracy:compatible").get_xdata(), STEPS)


def test_two_rows_of_one_seed_are_refused() -> None:
    with pytest.raises(InputError, match=r"one row per \(run, teacher, step, seed\), got two for .*seed = 0"):
        plot_overlap(pd.concat([TABLE, TABLE.iloc[:1]]))


def test_positions_and_ranks_are_means_over_seeds() -> None:
    parts = [position_table().assign(seed=seed) for seed in (0, 1)]
    parts[1]["overlap_ratio"] += 0.1
    figure = plot_alignment(pd.concat(parts), x="position", metrics=["overlap_ratio"])
    rows = position_table().query("step == 50")
    one = line(panel(figure, "Overlap ratio"), "overlap_ratio:compatible:step 50")
    np.testing.assert_allclose(one.get_ydata(), rows.overlap_ratio + 0.05)
    assert "Means over 2 seeds." in note(figure)
    masses = [mass_table(("compatible",)).assign(seed=seed) for seed in (0, 1)]
    masses[1]["student_overlap_mass"] -= 0.1
    ax = panel(plot_mass(pd.concat(masses)), "Mass of the overlap")
    rows = mass_table(("compatible",)).query("step == 100")
    np.testing.assert_allclose(
        line(ax, "student_overlap_mass:compatible:step 100").get_ydata(), rows.student_overlap_mass - 0.05
    )


def test_reference_levels() -> None:
    levels = pd.DataFrame({"label": ["the teacher", "the teacher", "before"], "accuracy": [0.8, 0.9, 0.2]})
    figure = plot_alignment(TABLE, metrics=["accuracy", "entropy_gap"], references=levels)
    ax = panel(figure, "Accuracy")
    assert list(np.asarray(line(ax, "reference:the teacher").get_ydata())) == pytest.approx([0.85, 0.85])
    assert ax.get_ylim()[1] > 0.85
    assert not [one for one in panel(figure, "Entropy gap").lines if "reference:" in str(one.get_gid())]
    named = {t.get_text() for a in figure.axes for t in a.texts if t.get_gid() == "direct-label"}
    names = {"compatible", "incompatible", "the teacher", "before"}
    assert names in (named, set(legend_labels(figure)))
    with pytest.raises(InputError, match="references table: no column 'label'"):
        plot_alignment(TABLE, references=levels.drop(columns="label"))


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_over_text(columns: int) -> None:
    metrics = ["accuracy", "overlap_ratio", "student_entropy", "teacher_entropy", "extreme_advantage_gap"]
    table = TABLE.assign(extreme_advantage_gap=0.1 * TABLE.entropy_gap)
    assert untidy_texts(plot_alignment(table, metrics=metrics, columns=columns)) == []
