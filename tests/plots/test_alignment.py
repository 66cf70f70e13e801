"""The alignment grid over steps and over positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from opd_probe.errors import InputError
from opd_probe.plots import plot_alignment

from .examples import STEPS, crowd_table, lab_table, position_table
from .looking import band, drawn, legend_labels, line, look, note, panel, remarks, untidy_texts

ONE_RUN = lab_table().query("run == 'compatible'")


def test_default_panels_over_steps() -> None:
    figure = plot_alignment(lab_table())
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Overlap ratio (k = 16)",
        "Overlap advantage (k = 16)",
        "Entropy gap",
        "Entropy",
        "Overlap mass (k = 16)",
        "KL divergence",
        "Sampled-token reward",
        "Accuracy",
    ]
    assert all(ax.get_ylabel() and ax.get_xlabel() == "training step" for ax in figure.axes)
    ax = panel(figure, "KL divergence")
    rows = lab_table().query("run == 'incompatible'")
    np.testing.assert_array_equal(line(ax, "forward_kl:incompatible").get_ydata(), rows.forward_kl)
    assert line(ax, "reverse_kl:incompatible").get_linestyle() == "-"
    assert line(ax, "forward_kl:incompatible").get_linestyle() == "--"
    assert remarks(ax) == "solid: reverse, dashed: forward"


def test_jsd_has_a_panel_when_known() -> None:
    titles = [ax.get_title(loc="left") for ax in plot_alignment(ONE_RUN.assign(jsd=0.1)).axes]
    assert "Jensen-Shannon divergence" in titles
    assert len(plot_alignment(ONE_RUN.assign(jsd=np.nan)).axes) == 8


def test_chosen_metrics_in_their_order() -> None:
    table = ONE_RUN.assign(topk_reverse_kl_union=0.2, my_metric=1.0)
    figure = plot_alignment(table, metrics=["teacher_entropy", "topk_reverse_kl_union", "my_metric", "student_entropy"])
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    assert titles == ["Entropy", "Reverse KL on the union (k = 16)", "My metric"]
    assert len(drawn(panel(figure, "Entropy"))) == 2
    single = plot_alignment(table, metrics=["teacher_entropy"])
    assert single.axes[0].get_title(loc="left") == "Teacher entropy"


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_values_are_marked_and_leave_the_axes_alone(sign: int) -> None:
    table = lab_table()
    table.loc[table.step.isin([20, 30]), ["reverse_kl", "reverse_kl_hi"]] = sign * np.inf
    ax = panel(plot_alignment(table, metrics=["reverse_kl", "forward_kl"]), "KL divergence")
    assert f"{'∞' if sign > 0 else '−∞'} at steps 20, 30" in remarks(ax)
    marks = [one for one in ax.lines if str(one.get_gid()).startswith("infinite:reverse_kl")]
    assert [list(np.asarray(one.get_xdata())) for one in marks] == [[20, 30], [20, 30]]
    assert max(ax.get_ylim()) < 2
    y = np.asarray(line(ax, "reverse_kl:compatible").get_ydata())
    assert np.isnan(y[2:4]).all()
    assert np.isfinite(np.delete(y, [2, 3])).all()


def test_all_infinite_is_said() -> None:
    ax = plot_alignment(ONE_RUN.assign(reverse_kl=np.inf), metrics=["reverse_kl"]).axes[0]
    assert "infinite at every point" in ax.texts[-1].get_text()


def test_positions_are_shades_of_one_hue() -> None:
    table = position_table()
    figure = plot_alignment(table, x="position")
    assert "Alignment by position at student-visited states (on-policy)" in figure.get_suptitle()
    ax = panel(figure, "Overlap ratio")
    greys = []
    for step in (0, 50, 100):
        key = f"overlap_ratio:compatible:step {step}"
        rows = table[table.step == step]
        np.testing.assert_array_equal(line(ax, key).get_xdata(), rows.position)
        np.testing.assert_array_equal(line(ax, key).get_ydata(), rows.overlap_ratio)
        x, low, _ = band(ax, key)
        np.testing.assert_allclose(x, rows.position)
        np.testing.assert_allclose(low, rows.overlap_ratio_lo)
        greys.append(np.mean(to_rgb(line(ax, key).get_color())))
    assert greys == sorted(greys, reverse=True)
    assert legend_labels(figure) == ["step 0", "step 50", "step 100"]
    assert ax.get_xlabel() == "position (tokens)"
    assert "mean of one bin" in note(figure)


def test_bins_of_few_states_are_left_out_and_said_so() -> None:
    table = position_table().assign(n_states=1000)
    table.loc[table.position_lo >= 900, "n_states"] = 19
    figure = plot_alignment(table, x="position", metrics=["overlap_ratio"])
    drawn = line(panel(figure, "Overlap ratio"), "overlap_ratio:compatible:step 0").get_xdata()
    assert len(drawn) == 18
    assert "bins of fewer than 20 states are left out" in note(figure)
    few = plot_alignment(table.assign(n_states=3), x="position", metrics=["overlap_ratio"])
    assert len(line(panel(few, "Overlap ratio"), "overlap_ratio:compatible:step 0").get_xdata()) == 20


def test_positions_of_several_runs_are_columns() -> None:
    chosen = ["overlap_ratio", "student_entropy", "teacher_entropy", "entropy_gap"]
    figure = plot_alignment(position_table(("compatible", "incompatible")), x="position", metrics=chosen)
    assert len(figure.axes) == 6
    heads = [t.get_text() for ax in figure.axes for t in ax.texts if t.get_gid() == "column-head"]
    assert heads == ["compatible", "incompatible"]
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        assert left.get_ylim() == right.get_ylim()
        assert {str(one.get_gid()).split(":")[1] for one in drawn(right)} == {"incompatible"}
    assert [bool(ax.get_xlabel()) for ax in figure.axes] == [False] * 4 + [True] * 2


def test_many_steps_keep_the_bands_of_the_ends() -> None:
    figure = plot_alignment(position_table(steps=STEPS), x="position", metrics=["overlap_ratio"])
    (ax,) = figure.axes
    assert len(drawn(ax)) == 11
    assert len(ax.collections) == 2
    assert legend_labels(figure)[0] == "step 0"
    assert legend_labels(figure)[-1] == "step 100"
    assert len(legend_labels(figure)) == 5


def test_series_survive_grey() -> None:
    few = ["overlap_ratio", "student_entropy", "teacher_entropy"]
    figures = [
        plot_alignment(lab_table()),
        plot_alignment(position_table(("compatible", "incompatible")), x="position", metrics=few),
    ]
    for ax in [ax for figure in figures for ax in figure.axes]:
        assert len({look(one) for one in drawn(ax)}) == len(drawn(ax))


def infinite() -> object:
    table = lab_table()
    table.loc[table.step == 20, "reverse_kl"] = np.inf
    return plot_alignment(table)


@pytest.mark.parametrize(
    "figure",
    [
        infinite,
        lambda: plot_alignment(crowd_table()),
        lambda: plot_alignment(lab_table((*STEPS, None)), columns=1, metrics=["entropy_gap", "reverse_kl"]),
        lambda: plot_alignment(lab_table().assign(topk_reverse_kl_student=1.0), metrics=["topk_reverse_kl_student"]),
        lambda: plot_alignment(position_table(steps=STEPS), x="position"),
        lambda: plot_alignment(position_table(("compatible", "incompatible")), x="position"),
        lambda: plot_alignment(
            position_table([f"run-{n}-with-a-long-name" for n in range(6)]),
            x="position",
            metrics=["overlap_ratio", "student_entropy", "teacher_entropy"],
        ),
    ],
    ids=["infinite", "crowd", "one column", "long title", "eleven steps", "two runs", "six runs"],
)
def test_no_text_over_text(figure) -> None:  # type: ignore[no-untyped-def]
    assert untidy_texts(figure()) == []


def test_bad_calls() -> None:
    with pytest.raises(InputError, match="expected x = 'step' or 'position', got 'tokens'"):
        plot_alignment(lab_table(), x="tokens")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="overlap table: no column 'nonsense'"):
        plot_alignment(lab_table(), metrics=["nonsense"])
    with pytest.raises(InputError, match="expected metrics to be a list"):
        plot_alignment(lab_table(), metrics="entropy_gap")
    with pytest.raises(InputError, match="overlap table: no column 'sampled_reward'"):
        plot_alignment(lab_table().drop(columns="sampled_reward"))
    with pytest.raises(InputError, match="position table: no column 'position'"):
        plot_alignment(lab_table(), x="position")
    table = position_table()
    with pytest.raises(InputError, match="position table: expected one row per"):
        plot_alignment(pd.concat([table, table]), x="position")
