"""AUROC against scikit-learn, and its interval over prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import opd_probe
from opd_probe.curves.auroc import left_out_auroc
from opd_probe.curves.bootstrap import Resampling
from tests.samples import grouped_trace, many_prompts


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_against_scikit_learn(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    scores = generator.normal(size=60).round(decimals)
    positive = generator.random(60) < 0.4
    weights = generator.integers(0, 4, (5, 60)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(scores, positive, weights), expected, rtol=1e-12)


def test_one_class_is_undefined() -> None:
    scores, positive = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    weights = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    result = weighted_auroc(scores, positive, weights)
    assert np.isnan(result).tolist() == [True, True, False]
    assert result[2] == 0.0


def test_separates_correct_from_incorrect_rollouts() -> None:
    trace = grouped_trace(many_prompts(25), seed=1)
    states = opd_probe.state_metrics(trace, 5)
    rollouts = trace.rollouts.to_pandas()
    reward = states.groupby("rollout_id", sort=False)["sampled_reward"].mean().to_numpy()
    correct = rollouts["score"].to_numpy() > 0
    row = opd_probe.summarize(trace, 5, resamples=80)
    assert row["reward_auroc"] == pytest.approx(roc_auc_score(correct, reward))
    assert row["reward_auroc_n"] == 50
    codes = np.unique(rollouts["prompt_id"], return_inverse=True)[1]
    drawn = [
        roc_auc_score(correct, reward, sample_weight=weights[codes])
        for weights in np.concatenate(list(Resampling(80, 0).weights(25)))
    ]
    assert row["reward_auroc_lo"] == pytest.approx(np.quantile(drawn, 0.025))
    assert row["reward_auroc_hi"] == pytest.approx(np.quantile(drawn, 0.975))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_class_in_a_trace(score: float) -> None:
    rollouts = [{**row, "score": score} for row in many_prompts(20)]
    row = opd_probe.summarize(grouped_trace(rollouts), 4)
    assert math.isnan(row["reward_auroc"])
    assert math.isnan(row["reward_auroc_lo"])
    assert row["reward_auroc_n"] == 40
