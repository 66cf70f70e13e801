"""AUROC against scikit-learn, and its interval over prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import opd_probe
from opd_probe.curves.auroc import left_out_auroc
from opd_probe.curves.intervals import interval
from opd_probe.curves.rollouts import Auroc
from opd_probe.errors import OpdProbeWarning
from tests.reference_intervals import left_out_interval
from tests.samples import grouped_trace, many_prompts


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_against_scikit_learn(decimals: int) -> None:
    """All rollouts, and those of all prompts but one; with ties, infinite scores and a prompt without rollouts."""
    generator = np.random.default_rng(decimals)
    scores = generator.normal(size=60).round(decimals)
    scores[3] = -np.inf
    positive = generator.random(60) < 0.4
    codes = generator.integers(0, 11, 60)
    codes[codes == 4] = 5
    area, left_out = left_out_auroc(scores, positive, codes, 11)
    ranks = np.unique(scores, return_inverse=True)[1]  # scikit-learn takes finite scores alone
    assert area == pytest.approx(roc_auc_score(positive, ranks), rel=1e-12)
    expected = [roc_auc_score(positive[codes != code], ranks[codes != code]) for code in range(11)]
    np.testing.assert_allclose(left_out, expected, rtol=1e-12)


def test_one_class_is_undefined() -> None:
    scores, positive = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    area, left_out = left_out_auroc(scores, positive, np.array([0, 1, 2]), 3)
    assert area == 0.0
    assert left_out[:2].tolist() == [0.0, 0.0]
    assert math.isnan(left_out[2])


def test_separates_correct_from_incorrect_rollouts() -> None:
    trace = grouped_trace(many_prompts(25), seed=1)
    states = opd_probe.state_metrics(trace, 5)
    rollouts = trace.rollouts.to_pandas()
    reward = states.groupby("rollout_id", sort=False)["sampled_reward"].mean().to_numpy()
    correct = rollouts["score"].to_numpy() > 0
    row = opd_probe.summarize(trace, 5)
    assert row["reward_auroc"] == pytest.approx(roc_auc_score(correct, reward))
    assert row["reward_auroc_n"] == 50
    prompts = rollouts["prompt_id"].to_numpy()

    def statistic(kept: list[str]) -> float:
        inside = np.isin(prompts, kept)
        return float(roc_auc_score(correct[inside], reward[inside]))

    units = min(len(set(prompts[correct])), len(set(prompts[~correct])))
    expected = left_out_interval(statistic, sorted(set(prompts)), units, 0.0, 1.0)
    assert (row["reward_auroc_lo"], row["reward_auroc_hi"]) == pytest.approx(expected, rel=1e-8)


def scored(right: dict[str, int]) -> list[dict[str, object]]:
    """Twenty prompts with four rollouts each, of which so many are right."""
    names = [f"p{index:02d}" for index in range(20)]
    rows = [{"prompt_id": name, "n_states": 3 + place} for name in names for place in range(4)]
    return [{**row, "score": float(int(row["n_states"]) - 3 < right.get(str(row["prompt_id"]), 0))} for row in rows]


@pytest.mark.parametrize("right", [{"p03": 1}, {"p03": 4}, {f"p{index:02d}": 4 for index in range(19)}])
def test_a_class_in_one_prompt_alone_has_no_auroc(right: dict[str, int]) -> None:
    trace = grouped_trace(scored(right))
    with pytest.warns(OpdProbeWarning, match="reward_auroc: 1 prompt with a .* rollout: no AUROC below 2"):
        row = opd_probe.summarize(trace, 4)
    assert [math.isnan(row[f"reward_auroc{end}"]) for end in ("", "_lo", "_hi")] == [True, True, True]
    assert row["reward_auroc_n"] == 80
    assert 0 <= row["accuracy_lo"] < row["accuracy"] < row["accuracy_hi"] <= 1


def test_few_prompts_of_a_class_are_warned_about() -> None:
    nine = {f"p{index:02d}": 1 for index in range(9)}
    with pytest.warns(OpdProbeWarning, match="reward_auroc: 9 prompts with a right rollout: .* rough below 10"):
        row = opd_probe.summarize(grouped_trace(scored(nine)), 4)
    assert row["reward_auroc_lo"] < row["reward_auroc"] < row["reward_auroc_hi"]
    opd_probe.summarize(grouped_trace(scored(nine | {"p09": 1})), 4)  # would raise if it warned


def test_a_perfect_separation_is_not_certain() -> None:
    reward = np.concatenate([np.linspace(-3, -2, 30), np.linspace(-1, 0, 6)])
    right, codes = (reward > -1.5).astype(np.float64), np.arange(36) // 2
    auroc = Auroc.of(reward, right, codes, 18)
    lo, hi = interval(auroc.estimate)
    assert auroc.estimate.value[0] == hi[0] == 1.0
    assert 0 < lo[0] < 0.9


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_class_in_a_trace(score: float) -> None:
    rollouts = [{**row, "score": score} for row in many_prompts(20)]
    row = opd_probe.summarize(grouped_trace(rollouts), 4)
    assert math.isnan(row["reward_auroc"])
    assert math.isnan(row["reward_auroc_lo"])
    assert row["reward_auroc_n"] == 40
