"""The headline figure, by the data of its artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from opd_probe.errors import InputError
from opd_probe.plots import plot_overlap

from .examples import COMPATIBLE, INCOMPATIBLE, LONG_NAMES, STEPS, crowd_table, lab_table, run_rows
from .looking import band, drawn, legend_labels, line, look, note, panel, remarks, untidy_texts

ONE_RUN = pd.DataFrame(run_rows("compatible", COMPATIBLE))
RATIO = "Overlap ratio (k = 16)"
MASS = "Overlap mass (k = 16)"
ADVANTAGE = "Overlap advantage (k = 16)"


def test_lines_and_bands_are_the_tables_numbers() -> None:
    table = lab_table()
    figure = plot_overlap(table.sample(frac=1, random_state=0))
    rows = table[table.run == "compatible"]
    for title, metric in (
        (RATIO, "overlap_ratio"),
        (MASS, "student_overlap_mass"),
        (MASS, "teacher_overlap_mass"),
        (ADVANTAGE, "overlap_advantage"),
        ("Accuracy", "accuracy"),
    ):
        ax = panel(figure, title)
        one = line(ax, f"{metric}:compatible")
        np.testing.assert_array_equal(one.get_xdata(), STEPS)
        np.testing.assert_array_equal(one.get_ydata(), rows[metric])
        x, low, high = band(ax, f"{metric}:compatible")
        np.testing.assert_array_equal(x, STEPS)
        np.testing.assert_allclose(low, rows[f"{metric}_lo"])
        np.testing.assert_allclose(high, rows[f"{metric}_hi"])


def test_labels_units_and_note() -> None:
    figure = plot_overlap(lab_table())
    units = {ax.get_title(loc="left"): ax.get_ylabel() for ax in figure.axes}
    assert units == {
        RATIO: "share of k",
        MASS: "probability",
        ADVANTAGE: "nats",
        "Accuracy": "share of rollouts",
    }
    assert {ax.get_xlabel() for ax in figure.axes} == {"training step"}
    assert "95 % interval over prompts (64 prompts)" in note(figure)
    assert remarks(panel(figure, MASS)) == "solid: student, dashed: teacher"
    (reference,) = [p for p in panel(figure, MASS).patches if p.get_gid() == "reference"]
    assert reference.get_extents().transformed(panel(figure, MASS).transData.inverted()).y0 == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ("own", "student-visited states (on-policy)"),
        ("fixed", "one fixed set of states"),
        ("unknown", "states of unknown origin"),
    ],
)
def test_title_says_whose_states(states: str, words: str) -> None:
    figure = plot_overlap(ONE_RUN.assign(states=states))
    assert words in figure.get_suptitle()
    assert ("on-policy" in figure.get_suptitle()) == (states == "own")


def test_mixed_states_are_named_in_title_and_labels() -> None:
    rows = run_rows("a", COMPATIBLE) + run_rows("b", INCOMPATIBLE, states="fixed")
    figure = plot_overlap(pd.DataFrame(rows))
    assert "student-visited states (on-policy) and one fixed set of states" in figure.get_suptitle()
    assert {text.get_text() for text in figure.axes[0].texts} >= {"a (own states)", "b (fixed states)"}


def test_re_tokenised_text_is_named_in_title_and_labels() -> None:
    def drawn(*sources: str | None) -> tuple[str, set[str]]:
        rows = [run_rows("a", COMPATIBLE), run_rows("b", INCOMPATIBLE)]
        table = pd.concat([pd.DataFrame(r).assign(token_source=s) for r, s in zip(rows, sources, strict=True)])
        figure = plot_overlap(table)
        return figure.get_suptitle(), {text.get_text() for text in figure.axes[0].texts}

    title, labels = drawn("retokenized", "retokenized")
    assert title.endswith("student-visited states (on-policy, re-tokenised text)")
    assert labels >= {"a", "b"}
    title, labels = drawn("retokenized", "sampled_ids")
    assert title.endswith("(on-policy, some of them re-tokenised text)")
    assert labels >= {"a (re-tokenised text)", "b"}
    for sources in (("sampled_ids", "sampled_ids"), (None, None)):
        assert "text" not in drawn(*sources)[0]


def test_names_stand_beside_their_lines_or_in_a_legend() -> None:
    apart = plot_overlap(lab_table())
    direct = {t.get_text(): t for t in apart.axes[0].texts if t.get_gid() == "direct-label"}
    assert set(direct) == {"compatible", "incompatible"}
    assert legend_labels(apart) == []
    same = plot_overlap(pd.DataFrame(run_rows("a", COMPATIBLE) + run_rows("b", COMPATIBLE)))
    assert not [t for t in same.axes[0].texts if t.get_gid() == "direct-label"]
    assert legend_labels(same) == ["a", "b"]


def test_a_run_keeps_its_colour_and_series_survive_grey() -> None:
    rows = run_rows("a", COMPATIBLE, teacher="near") + run_rows("a", INCOMPATIBLE, teacher="far")
    figure = plot_overlap(pd.DataFrame(rows + run_rows("b", COMPATIBLE, shift=-0.5)))
    for ax in figure.axes:
        colors = {str(one.get_gid()).partition(":")[2]: one.get_color() for one in drawn(ax)}
        assert colors["a ← near"] == colors["a ← far"] != colors["b"]
        assert len({look(one) for one in drawn(ax)}) == len(drawn(ax))


def test_what_no_teacher_changes_has_one_band() -> None:
    rows = run_rows("a", COMPATIBLE, teacher="near") + run_rows("a", COMPATIBLE, teacher="far")
    table = pd.DataFrame(rows)
    table.loc[table["teacher"] == "far", ["overlap_ratio_lo", "overlap_ratio_hi"]] += 0.001
    figure = plot_overlap(table)
    bands = {name: len(panel(figure, name).collections) for name in ("Accuracy", RATIO)}
    assert bands == {"Accuracy": 1, RATIO: 2}
    assert len(drawn(panel(figure, "Accuracy"))) == 2


def test_twelve_long_names() -> None:
    figure = plot_overlap(crowd_table())
    for ax in figure.axes:
        looks = [look(one)[:4] for one in drawn(ax)]  # without any help from lightness
        assert len(looks) == len(set(looks)) == (24 if ax is panel(figure, MASS) else 12)
    labels = legend_labels(figure)
    assert len(set(labels)) == 12
    assert all(name.endswith(label.lstrip("…")) for name, label in zip(LONG_NAMES, labels, strict=True))
    assert untidy_texts(figure) == []


def test_one_checkpoint_is_points_with_error_bars() -> None:
    figure = plot_overlap(lab_table((100,)))
    ax = panel(figure, RATIO)
    assert [one.get_linestyle() for one in drawn(ax)] == ["None", "None"]
    first, second = (float(np.asarray(one.get_xdata())[0]) for one in drawn(ax))
    assert first < 100 < second
    bars = [c for c in ax.collections if isinstance(c, LineCollection)]
    row = lab_table((100,)).iloc[0]
    np.testing.assert_allclose(bars[0].get_segments()[0][:, 1], [row.overlap_ratio_lo, row.overlap_ratio_hi])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100"]
    assert "filled: student, open: teacher" in remarks(panel(figure, MASS))
    assert note(figure).startswith("Bars: 95 %")


def test_unknown_step_has_a_place_of_its_own() -> None:
    figure = plot_overlap(lab_table((*STEPS, None)))
    ax = panel(figure, RATIO)
    known, point = (one for one in drawn(ax) if one.get_gid() == "overlap_ratio:compatible")
    assert len(known.get_xdata()) == len(STEPS)  # type: ignore[arg-type]
    assert np.asarray(point.get_xdata())[0] > 100
    assert ax.get_xticklabels()[-1].get_text() == "?"
    assert "unknown" in ax.get_xlabel()
    alone = plot_overlap(lab_table((None,)))
    assert [tick.get_text() for tick in alone.axes[0].get_xticklabels()] == ["?"]


def test_no_interval_and_no_value() -> None:
    table = ONE_RUN.assign(n_prompts=1, overlap_advantage=np.nan, student_overlap_mass_n=0)
    ends = [column for column in table.columns if column.endswith(("_lo", "_hi"))]
    table[ends] = np.nan
    figure = plot_overlap(table)
    assert note(figure).startswith("No interval: fewer than 2 prompts.")
    assert not panel(figure, RATIO).collections
    (empty,) = panel(figure, ADVANTAGE).texts[-1:]
    assert empty.get_text().startswith("not available:")
    assert not panel(figure, ADVANTAGE).lines
    nothing = plot_overlap(ONE_RUN.assign(overlap_advantage=np.nan, overlap_advantage_n=0))
    assert "defined on no state" in panel(nothing, ADVANTAGE).texts[-1].get_text()


def test_accuracy_is_drawn_only_when_known() -> None:
    assert len(plot_overlap(ONE_RUN.drop(columns="accuracy")).axes) == 3
    assert len(plot_overlap(ONE_RUN.assign(accuracy=np.nan)).axes) == 3


def test_tiny_values_are_multiples_of_a_power_of_ten() -> None:
    table = ONE_RUN.copy()
    table[["overlap_advantage", "overlap_advantage_lo", "overlap_advantage_hi"]] *= 1e-6
    figure = plot_overlap(table)
    assert panel(figure, ADVANTAGE).get_ylabel() == "10⁻⁸ nats"
    np.testing.assert_array_equal(
        line(panel(figure, ADVANTAGE), "overlap_advantage:compatible").get_ydata(),
        table.overlap_advantage,
    )
    assert untidy_texts(figure) == []


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (lab_table(), 1),
        (lab_table(), 2),
        (lab_table((100,)), 2),
        (lab_table((*STEPS, None)), 2),
        (lab_table().drop(columns="accuracy"), 2),
        (crowd_table((None,)), 1),
    ],
    ids=["one column", "lab", "one step", "unknown step", "no accuracy", "crowd of points"],
)
def test_no_text_over_text(table: pd.DataFrame, columns: int) -> None:
    assert untidy_texts(plot_overlap(table, columns=columns)) == []


def test_bad_tables() -> None:
    table = lab_table()
    with pytest.raises(InputError, match="overlap table: no column 'states', 'overlap_ratio'") as caught:
        plot_overlap(table.drop(columns=["overlap_ratio", "states"]))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="overlap table: expected at least one row"):
        plot_overlap(table.iloc[:0])
    with pytest.raises(InputError, match="expected one k in column 'k', got 4, 16"):
        plot_overlap(pd.concat([table, table.assign(k=4)]))
    with pytest.raises(InputError, match="got two for run = compatible, teacher = teacher, step = 0"):
        plot_overlap(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(InputError, match=r"column 'states'.*'mine'"):
        plot_overlap(table.assign(states="mine"))
    with pytest.raises(InputError, match=r"column 'overlap_ratio'.*expected numbers"):
        plot_overlap(table.assign(overlap_ratio="high"))
    with pytest.raises(InputError, match="expected a pandas DataFrame, got list"):
        plot_overlap([])  # type: ignore[arg-type]
