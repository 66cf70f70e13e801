"""Means, intervals and counts against pandas, numpy and a plain loop over resamples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import opd_probe
from opd_probe.curves.bootstrap import Resampling, quantile
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.metrics import METRICS
from opd_probe.trace import Trace
from tests.reference_intervals import left_out_interval
from tests.samples import grouped_trace, many_prompts, random_pair

MEANS = [name for name, metric in METRICS.items() if metric.summary == "mean"]
FEW = pytest.mark.filterwarnings("ignore:.* prompt:opd_probe.OpdProbeWarning")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return grouped_trace(many_prompts(25), seed=1)


@pytest.fixture(scope="module")
def states(trace: Trace) -> pd.DataFrame:
    return opd_probe.state_metrics(trace, 5)


def average_of(states: pd.DataFrame, average: str) -> pd.Series:
    if average == "token":
        return states[MEANS].mean()
    return states.groupby("rollout_id")[MEANS].mean().mean()


@pytest.mark.parametrize("average", ["token", "rollout"])
def test_means_against_pandas(trace: Trace, states: pd.DataFrame, average: str) -> None:
    row = opd_probe.summarize(trace, 5, average=average, resamples=0)
    expected = average_of(states, average)
    for name in MEANS:
        assert row[name] == pytest.approx(expected[name], rel=1e-12, abs=1e-15), name
        assert row[f"{name}_n"] == states[name].notna().sum()
        assert math.isnan(row[f"{name}_lo"])
    assert row["k"] == 5
    assert (row["n_prompts"], row["n_rollouts"], row["n_states"]) == (25, 50, len(states))
    assert row["n_empty_overlap"] == (states["overlap_ratio"] == 0).sum()


@pytest.mark.parametrize("average", ["token", "rollout"])
def test_intervals_against_a_loop_over_prompts(trace: Trace, states: pd.DataFrame, average: str) -> None:
    """Each prompt's states are taken away, and what is left is averaged anew."""
    row = opd_probe.summarize(trace, 5, average=average)
    prompts = sorted(set(states["prompt_id"]))
    means = {
        tuple(kept): average_of(states[states["prompt_id"].isin(kept)], average)
        for kept in [prompts, *([other for other in prompts if other != one] for one in prompts)]
    }
    for name in MEANS:
        known = states[states[name].notna()]
        assert set(known["prompt_id"]) == set(prompts)
        units = len(known) * len(prompts) / known["rollout_id"].nunique()

        def statistic(kept: list[str], name: str = name) -> float:
            return float(means[tuple(kept)][name])

        expected = left_out_interval(statistic, prompts, units, *METRICS[name].range)
        assert (row[f"{name}_lo"], row[f"{name}_hi"]) == pytest.approx(expected, rel=1e-7, abs=1e-12), name


def test_weights_draw_each_cluster_with_replacement() -> None:
    weights = np.concatenate(list(Resampling(2000, 0).weights(30)))
    assert weights.shape == (2000, 30)
    assert (weights.sum(1) == 30).all()
    assert abs(weights.mean() - 1) < 1e-12
    assert abs(weights.var() - 29 / 30) < 0.03
    np.testing.assert_array_equal(weights, np.concatenate(list(Resampling(2000, 0).weights(30))))
    assert (weights != np.concatenate(list(Resampling(2000, 1).weights(30)))).any()
    drawn = np.random.default_rng(0).integers(0, 30, (2000, 30))  # whatever the blocks that they come in
    np.testing.assert_array_equal(weights, [np.bincount(row, minlength=30) for row in drawn])


def test_prompts_are_resampled_not_tokens() -> None:
    """States alike within a prompt: the interval is that of 20 prompts, not that of 20 · 40 states."""
    per_prompt = 40
    values = np.random.default_rng(0).normal(size=20)
    student = np.zeros((20 * per_prompt, 2), dtype=np.float32)
    teacher = student.copy()
    teacher[:, 0] = np.repeat(values, per_prompt)
    tokens = np.zeros(20 * per_prompt, dtype=np.int64)
    rollouts = [{"prompt_id": f"p{i:02d}", "n_states": per_prompt // 2} for i in range(20) for _ in range(2)]
    trace = grouped_trace(rollouts, k=2, logits=(student, teacher, tokens))
    rewards = opd_probe.state_metrics(trace, 2)["sampled_reward"].to_numpy()
    row = opd_probe.summarize(trace, 2, metrics=["sampled_reward"])
    width = row["sampled_reward_hi"] - row["sampled_reward_lo"]
    by_prompt = 2 * 1.96 * rewards[::per_prompt].std() / math.sqrt(20)
    by_token = 2 * 1.96 * rewards.std() / math.sqrt(len(rewards))
    assert 0.8 * by_prompt < width < 1.2 * by_prompt
    assert width > 4 * by_token


def test_the_same_prompts_are_resampled_alike_in_two_traces() -> None:
    """A constant difference between two traces has no width, whatever the order and the lengths of rollouts."""
    rollouts = many_prompts(22)
    total = sum(row["n_states"] for row in rollouts)
    student, teacher, tokens = random_pair(total, 40)
    first = grouped_trace(rollouts, logits=(student, teacher, tokens))
    backwards = list(range(total))[::-1]
    second = grouped_trace(rollouts[::-1], logits=(student[backwards], teacher[backwards], tokens[backwards]))
    one, two = opd_probe.summarize(first, 4), opd_probe.summarize(second, 4)
    for name in MEANS:
        for suffix in ("", "_lo", "_hi"):
            assert one[name + suffix] == pytest.approx(two[name + suffix], rel=1e-9, abs=1e-15), name


def test_one_prompt_has_no_interval() -> None:
    trace = grouped_trace([{"prompt_id": "a", "n_states": 3}, {"prompt_id": "a", "n_states": 4}])
    with pytest.warns(OpdProbeWarning, match="1 prompt: no intervals"):
        row = opd_probe.summarize(trace, 4)
    assert row["n_prompts"] == 1
    assert math.isnan(row["overlap_ratio_lo"])
    assert math.isnan(row["overlap_ratio_hi"])
    assert math.isfinite(row["overlap_ratio"])


def test_few_prompts_warn() -> None:
    with pytest.warns(OpdProbeWarning, match="19 prompts: intervals"):
        row = opd_probe.summarize(grouped_trace(many_prompts(19)), 4)
    assert row["overlap_ratio_lo"] < row["overlap_ratio"] < row["overlap_ratio_hi"]
    opd_probe.summarize(grouped_trace(many_prompts(20)), 4)  # would raise if it warned


@FEW
def test_infinite_values_are_counted() -> None:
    rollouts = [{"prompt_id": f"p{index}", "n_states": 2} for index in range(6)]
    student, teacher, tokens = random_pair(12, 40)
    teacher[3, int(np.argmax(student[3]))] = -np.inf
    row = opd_probe.summarize(grouped_trace(rollouts, logits=(student, teacher, tokens)), 4)
    assert row["reverse_kl"] == math.inf
    assert row["reverse_kl_n"] == 12
    assert row["reverse_kl_hi"] == math.inf
    assert math.isfinite(row["reverse_kl_lo"])
    assert math.isfinite(row["forward_kl"])


def test_missing_column_is_null_with_no_states() -> None:
    row = opd_probe.summarize(grouped_trace(many_prompts(20), jsd=False), 4)
    assert math.isnan(row["jsd"])
    assert row["jsd_n"] == 0
    assert math.isnan(row["jsd_lo"])


@FEW
def test_skipped_rollouts_are_counted_and_nothing_else() -> None:
    full = [{"prompt_id": "a", "n_states": 4, "finish_reason": "stop"}, {"prompt_id": "b", "n_states": 3}]
    skipped = {
        "prompt_id": "c",
        "n_states": 0,
        "skipped": "empty response",
        "finish_reason": "length",
        "score": 1.0,
    }
    row = opd_probe.summarize(grouped_trace([full[0], skipped, full[1]]), 4)
    plain = opd_probe.summarize(grouped_trace(full), 4)
    assert row["n_skipped"] == 1
    assert row["n_rollouts"] == 2
    assert row["n_prompts"] == 2
    for name, value in plain.items():
        if name != "n_skipped":
            assert row[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


def test_rollout_quantities(trace: Trace, states: pd.DataFrame) -> None:
    row = opd_probe.summarize(trace, 5)
    table = trace.rollouts.to_pandas()
    assert row["response_length"] == pytest.approx(table["response_length"].mean())
    assert row["truncation_rate"] == pytest.approx((table["finish_reason"] == "length").mean())
    assert row["accuracy"] == pytest.approx(table["score"].mean())
    assert row["accuracy_n"] == 50
    reward = states.groupby("rollout_id")["sampled_reward"].mean()
    assert row["sequence_mean_reward"] == pytest.approx(reward.mean(), rel=1e-9)
    assert row["accuracy_lo"] < row["accuracy"] < row["accuracy_hi"]


@FEW
def test_unknown_rollout_quantities_are_null() -> None:
    row = opd_probe.summarize(grouped_trace([{"prompt_id": "a", "n_states": 4}, {"prompt_id": "b", "n_states": 3}]), 4)
    for name in ("accuracy", "truncation_rate", "reward_auroc"):
        assert math.isnan(row[name])
        assert row[f"{name}_n"] == 0


def test_counts_of_tokens_against_numpy(trace: Trace) -> None:
    states = opd_probe.state_metrics(trace, 5)
    row = opd_probe.summarize(trace, 5, resamples=0)
    for side in ("student", "teacher"):
        for mass in ("0.97", "0.99"):
            name = f"{side}_k_for_{mass}"
            values = states[name].fillna(np.inf).to_numpy()
            for suffix, q in (("median", 0.5), ("p90", 0.9)):
                with np.errstate(invalid="ignore"):
                    expected = np.quantile(values, q)
                if math.isfinite(expected):
                    assert row[f"{name}_{suffix}"] == pytest.approx(expected)
                else:
                    assert math.isnan(row[f"{name}_{suffix}"])
            assert row[f"{name}_share_beyond"] == pytest.approx(states[name].isna().mean())
            assert row[f"{name}_n"] == states[name].notna().sum()


def test_counts_of_tokens_where_all_are_known() -> None:
    trace = grouped_trace(many_prompts(20), vocabulary=30, k=30)
    row = opd_probe.summarize(trace, 5, resamples=0)
    values = opd_probe.state_metrics(trace, 5)["student_k_for_0.97"].to_numpy()
    assert len(set(values)) > 3
    assert row["student_k_for_0.97_median"] == pytest.approx(np.median(values))
    assert row["student_k_for_0.97_p90"] == pytest.approx(np.quantile(values, 0.9))
    assert row["student_k_for_0.97_share_beyond"] == 0


@pytest.mark.parametrize("change", [{"average": "prompt"}, {"k": 9}, {"k": 0}, {"metrics": ["no"]}])
def test_refused(trace: Trace, change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        opd_probe.summarize(trace, **({"k": 5} | change))


@pytest.mark.parametrize("q", [0.0, 0.025, 0.5, 0.9, 1.0])
def test_quantile_against_numpy(q: float) -> None:
    values = np.random.default_rng(0).normal(size=(101, 4)).round(1)
    values[:40, 1] = np.nan
    values[:, 2] = np.nan
    expected: list[Any] = [np.quantile(v[~np.isnan(v)], q) if (~np.isnan(v)).any() else np.nan for v in values.T]
    np.testing.assert_allclose(quantile(values, q), expected)


def test_quantile_beside_infinities() -> None:
    def column(*values: float) -> NDArray[np.float64]:
        return np.array(values)[:, None]

    assert quantile(column(1.0, 2.0, math.inf), 0.5)[0] == 2.0
    assert quantile(column(1.0, math.inf, math.inf), 0.25)[0] == math.inf
    assert quantile(column(-math.inf, 1.0, 2.0), 0.25)[0] == -math.inf
    assert quantile(column(-math.inf, -math.inf, 2.0), 0.5)[0] == -math.inf
