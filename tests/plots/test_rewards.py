"""Histograms of the sequence mean reward, by the data of their artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from opd_probe.errors import InputError
from opd_probe.plots import plot_rewards

from .examples import rollout_rows
from .looking import legend_labels, note, panel, remarks, untidy_texts

TABLE = rollout_rows()
AUROC = pd.DataFrame(
    {"run": ["good", "good", "failing"], "teacher": ["good teacher"] * 2 + ["failing teacher"],
     "reward_auroc": [0.81, 0.79, 0.5], "reward_auroc_lo": [0.7, 0.7, 0.4], "reward_auroc_hi": [0.9, 0.9, 0.6]}
)  # fmt: skip


def stairs(ax: Axes, key: str) -> StepPatch:
    (found,) = [patch for patch in ax.patches if patch.get_gid() == key]
    assert isinstance(found, StepPatch)
    return found


def test_histograms_are_shares_of_each_class() -> None:
    figure = plot_rewards(TABLE)
    edges = stairs(panel(figure, "good"), "correct:good").get_data().edges
    for run in ("good", "failing"):
        rows = TABLE[TABLE.run == run]
        for name, wanted in (("correct", 1.0), ("incorrect", 0.0)):
            found = stairs(panel(figure, run), f"{name}:{run}").get_data()
            chosen = rows[rows.correct == wanted].sequence_mean_reward.clip(edges[0], edges[-1])
            np.testing.assert_array_equal(found.edges, edges)
            np.testing.assert_allclose(found.values, np.histogram(chosen, edges)[0] / len(chosen))
            assert found.values.sum() == pytest.approx(1.0)
            (mean,) = [one for one in panel(figure, run).lines if one.get_gid() == f"mean:{name}:{run}"]
            assert np.asarray(mean.get_xdata())[0] == pytest.approx(
                rows[rows.correct == wanted].sequence_mean_reward.mean()
            )
    assert legend_labels(figure) == ["correct", "incorrect"]
    assert note(figure).startswith("Rollouts of 2 seeds together.")
    left, right = (panel(figure, run).get_ylim() for run in ("good", "failing"))
    assert left == right


def test_the_two_classes_survive_grey() -> None:
    ax = panel(plot_rewards(TABLE), "good")
    assert stairs(ax, "correct:good").get_fill()
    assert not stairs(ax, "incorrect:good").get_fill()


def test_auroc_is_that_of_the_table() -> None:
    figure = plot_rewards(TABLE, AUROC)
    assert remarks(panel(figure, "good")) == "AUROC 0.810 · 0.790 (one per seed)\n134 correct, 266 incorrect"
    assert remarks(panel(figure, "failing")).startswith("AUROC 0.50 [0.40, 0.60]")
    unknown = plot_rewards(TABLE, AUROC.assign(reward_auroc=np.nan))
    assert remarks(panel(unknown, "good")).startswith("AUROC unknown: one class only")


def test_missing_scores_and_infinite_rewards() -> None:
    table = TABLE.copy()
    table.loc[table.run == "failing", "correct"] = np.nan
    table.loc[0, "sequence_mean_reward"] = -np.inf
    figure = plot_rewards(table)
    assert panel(figure, "failing").texts[-1].get_text() == "not available:\nno rollout with a known score"
    assert "1 rollouts without a finite reward are left out" in note(figure)
    one_class = plot_rewards(TABLE[TABLE.correct == 1.0])
    assert [str(p.get_gid()) for p in panel(one_class, "good").patches] == ["correct:good"]


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_over_text(columns: int) -> None:
    assert untidy_texts(plot_rewards(TABLE, AUROC, columns=columns)) == []


def test_bad_tables() -> None:
    with pytest.raises(InputError, match="rewards table: no column 'correct'"):
        plot_rewards(TABLE.drop(columns="correct"))
    with pytest.raises(InputError, match="expected rollouts of one step, got those of steps 0, 5"):
        plot_rewards(pd.concat([TABLE, TABLE.assign(step=5)]))
    with pytest.raises(InputError, match="auroc table: no column 'reward_auroc'"):
        plot_rewards(TABLE, AUROC.drop(columns="reward_auroc"))
