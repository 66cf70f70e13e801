"""Paired differences against obvious loops: take a prompt away on both sides; for quantiles, repeat drawn prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import opd_probe
from opd_probe.curves.bootstrap import Resampling
from opd_probe.curves.paired import histogram_quantile
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.metrics import METRICS, TRACE_METRICS
from opd_probe.trace import Trace
from tests.reference_intervals import from_changes
from tests.samples import grouped_trace, many_prompts, random_pair

MEANS = [name for name, metric in METRICS.items() if metric.summary == "mean"]
FEW = pytest.mark.filterwarnings("ignore:.* prompt:opd_probe.OpdProbeWarning")
RESAMPLES, SEED, K = 30, 3, 5


def rows_of(trace: Trace, prompts: list[str]) -> list[dict[str, Any]]:
    """What a trace holds of some prompts, one entry per rollout: its states and its row of the rollout table."""
    states = dict(list(opd_probe.state_metrics(trace, K).groupby("rollout_id")))
    rollouts = trace.rollouts.to_pylist()
    return [
        {**row, "states": states[row["rollout_id"]]}
        for row in rollouts
        if row["prompt_id"] in prompts and row["rollout_id"] in states
    ]


def values_of(rollouts: list[dict[str, Any]], average: str) -> dict[str, float]:
    """Every compared quantity of a list of rollouts, the obvious way; a prompt drawn twice is there twice."""
    states = pd.concat([rollout["states"] for rollout in rollouts])
    per_rollout = pd.DataFrame([rollout["states"][MEANS].mean() for rollout in rollouts])
    found = dict(states[MEANS].mean() if average == "token" else per_rollout.mean())
    score = np.array([math.nan if r["score"] is None else r["score"] for r in rollouts], dtype=float)
    found["sequence_mean_reward"] = per_rollout["sampled_reward"].mean()
    found["response_length"] = np.mean([r["response_length"] for r in rollouts])
    reasons = [r["finish_reason"] for r in rollouts if r["finish_reason"] is not None]
    found["truncation_rate"] = np.mean([reason == "length" for reason in reasons]) if reasons else math.nan
    found["accuracy"] = np.nanmean(score) if np.isfinite(score).any() else math.nan
    known = ~np.isnan(score)
    both = len(set(score[known])) == 2
    rewards = per_rollout["sampled_reward"].to_numpy()[known]
    found["reward_auroc"] = float(roc_auc_score(score[known], rewards)) if both else math.nan
    for side in ("student", "teacher"):
        for share in ("0.97", "0.99"):
            counts = states[f"{side}_k_for_{share}"].fillna(np.inf).to_numpy()
            for kind, q in (("median", 0.5), ("p90", 0.9)):
                with np.errstate(invalid="ignore"):
                    quantile = float(np.quantile(counts, q))
                found[f"{side}_k_for_{share}_{kind}"] = quantile if math.isfinite(quantile) else math.nan
    return found


def units_of(rollouts: list[dict[str, Any]], name: str) -> tuple[float, int]:
    """How many units a quantity is made of on one side, and in how many prompts it is defined."""
    if name == "reward_auroc":
        by_class = [{r["prompt_id"] for r in rollouts if r["score"] == score} for score in (0.0, 1.0)]
        return min(len(prompts) for prompts in by_class), len(by_class[0] | by_class[1])
    if name in MEANS:
        defined = [(r["prompt_id"], int(r["states"][name].notna().sum())) for r in rollouts]
    else:
        column = {"accuracy": "score", "truncation_rate": "finish_reason"}.get(name, "rollout_id")
        defined = [(r["prompt_id"], int(r[column] is not None)) for r in rollouts]
    defined = [(prompt, count) for prompt, count in defined if count]
    prompts = len({prompt for prompt, _ in defined})
    return sum(count for _, count in defined) * prompts / max(len(defined), 1), prompts


def range_of(name: str) -> tuple[float, float]:
    """What a difference of two values of a quantity lies in."""
    if name in MEANS:
        low, high = METRICS[name].range
    else:
        low, high = (-math.inf, math.inf) if name in ("sequence_mean_reward", "response_length") else (0.0, 1.0)
    return low - high, high - low


def reference(a: Trace, b: Trace, average: str) -> dict[str, tuple[float, float, float]]:
    """Difference with its interval for each quantity."""
    common = sorted(set(a.rollouts["prompt_id"].to_pylist()) & set(b.rollouts["prompt_id"].to_pylist()))
    sides = [rows_of(trace, common) for trace in (a, b)]

    def differences(times: dict[str, int]) -> dict[str, float]:
        first, second = (values_of([r for r in side for _ in range(times[r["prompt_id"]])], average) for side in sides)
        return {name: second[name] - first[name] for name in first}

    every = dict.fromkeys(common, 1)
    whole = differences(every)
    without = [differences({**every, prompt: 0}) for prompt in common]
    drawn = pd.DataFrame(
        [
            differences(dict(zip(common, weights.astype(int), strict=True)))
            for weights in np.concatenate(list(Resampling(RESAMPLES, SEED).weights(len(common))))
        ]
    )
    found = {}
    for name, value in whole.items():
        if "_k_for_" in name:
            found[name] = (value, float(drawn[name].quantile(0.025)), float(drawn[name].quantile(0.975)))
            continue
        (units, clusters), (others, also) = (units_of(side, name) for side in sides)
        n = min(clusters, also)
        changes = [(n - 1) / n * (value - other[name]) for other in without]
        found[name] = (value, *from_changes(value, changes, min(units, others), *range_of(name), clusters=n))
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[Trace, Trace]:
    """Two traces of other rollouts, 22 prompts in common: the first lacks p022 and on, the second p000 and p001."""
    a = grouped_trace(many_prompts(22, seed=1), seed=1, vocabulary=30, k=24)
    b = grouped_trace(many_prompts(25, 3, seed=2)[6:], seed=2, vocabulary=30, k=24)
    return a, b


@FEW
@pytest.mark.parametrize("average", ["token", "rollout"])
def test_against_loops(pair: tuple[Trace, Trace], average: str) -> None:
    table = opd_probe.compare(*pair, K, average=average, resamples=RESAMPLES, seed=SEED).set_index("metric")
    expected = reference(*pair, average)
    assert set(table.index) == set(expected) | set(TRACE_METRICS)
    for name, triple in expected.items():
        actual = table.loc[name, ["difference", "difference_lo", "difference_hi"]].to_numpy(float)
        np.testing.assert_allclose(actual, triple, rtol=1e-8, atol=1e-12, err_msg=name)
    assert set(table["n_prompts"]) == {20}
    assert set(table["n_prompts_only_a"]) == {2}
    assert set(table["n_prompts_only_b"]) == {3}


@FEW
def test_the_difference_is_b_minus_a(pair: tuple[Trace, Trace]) -> None:
    there, back = (opd_probe.compare(*order, K, resamples=40) for order in (pair, pair[::-1]))
    np.testing.assert_allclose(there["difference"], there["b"] - there["a"])
    np.testing.assert_array_equal(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["difference_lo"], -back["difference_hi"], rtol=1e-10)
    finite = there["difference"].notna()
    assert (there.loc[finite, "difference_lo"] <= there.loc[finite, "difference_hi"]).all()


def test_a_trace_against_itself_differs_by_exactly_nothing() -> None:
    trace = grouped_trace(many_prompts(25), seed=1)
    table = opd_probe.compare(trace, trace, K, resamples=100)
    known = table["difference"].notna()
    assert known.sum() > 40
    for name in ("difference", "difference_lo", "difference_hi"):
        assert (table.loc[known, name] == 0).all()
    assert table.loc[~known, ["difference_lo", "difference_hi"]].isna().all(axis=None)
    assert set(table["n_prompts_only_a"]) == {0}


def test_pairing_narrows_the_interval() -> None:
    """The teacher prefers every token by a constant more in the second trace, and prompts differ much in both."""
    rollouts = [{"prompt_id": f"p{i:02d}", "n_states": 10} for i in range(30)]
    student, _, tokens = random_pair(300, 2, spread=0.0)
    shift = np.repeat(np.random.default_rng(0).normal(0, 2, 30), 10).astype(np.float32)
    traces = []
    for extra in (0.0, 0.3):
        teacher = student.copy()
        teacher[:, 0] += shift + extra
        traces.append(grouped_trace(rollouts, k=2, logits=(student, teacher, np.zeros_like(tokens))))
    row = opd_probe.compare(*traces, 2, metrics=["sampled_reward"]).iloc[0]
    alone = opd_probe.summarize(traces[0], 2, metrics=["sampled_reward"])
    width = row["difference_hi"] - row["difference_lo"]
    assert 0 < width < 0.2 * (alone["sampled_reward_hi"] - alone["sampled_reward_lo"])
    assert row["difference_lo"] > 0


def test_no_common_prompt() -> None:
    a = grouped_trace([{"prompt_id": "x", "n_states": 3}, {"prompt_id": "skipped", "n_states": 0}])
    b = grouped_trace([{"prompt_id": "y", "n_states": 3}, {"prompt_id": "skipped", "n_states": 2}])
    with pytest.raises(InputError, match=r"no prompt is in both traces .*'x' and 'skipped'") as caught:
        opd_probe.compare(a, b, 4)
    assert "\n" not in str(caught.value)


@FEW
def test_one_common_prompt_has_no_interval_and_few_are_warned_about() -> None:
    a = grouped_trace([{"prompt_id": "a", "n_states": 3}, {"prompt_id": "b", "n_states": 3}])
    b = grouped_trace([{"prompt_id": "a", "n_states": 3}, {"prompt_id": "c", "n_states": 3}], seed=5)
    with pytest.warns(OpdProbeWarning, match="1 prompt: no intervals"):
        table = opd_probe.compare(a, b, 4)
    assert table["difference_lo"].isna().all()
    assert table["difference"].notna().sum() > 10


@FEW
def test_prompts_of_another_length_under_one_name_are_warned_about() -> None:
    traces = [
        grouped_trace([{"prompt_id": f"p{i}", "n_states": 2, "prompt_length": length} for i in range(3)])
        for length in (4, 9)
    ]
    with pytest.warns(OpdProbeWarning, match="3 of 3 common prompts differ in length"):
        opd_probe.compare(*traces, 4, resamples=0)


def test_sampled_ids_beside_text_are_warned_about() -> None:
    traces = [
        grouped_trace([{"prompt_id": f"p{i}", "n_states": 2, "token_source": source} for i in range(3)])
        for source in ("sampled_ids", "retokenized")
    ]
    with pytest.warns(OpdProbeWarning, match="B is of re-tokenised text, A of sampled ids"):
        opd_probe.compare(*traces, 4, resamples=0)


@FEW
def test_what_one_side_lacks_is_null_and_infinities_keep_their_sign() -> None:
    rollouts = [{"prompt_id": f"p{index}", "n_states": 2} for index in range(6)]
    student, teacher, tokens = random_pair(12, 40)
    a = grouped_trace(rollouts, logits=(student, teacher, tokens), jsd=False)
    forbidden = teacher.copy()
    forbidden[3, int(np.argmax(student[3]))] = -np.inf
    b = grouped_trace(rollouts, logits=(student, forbidden, tokens))
    table = opd_probe.compare(a, b, 4, resamples=20).set_index("metric")
    assert math.isnan(table.loc["jsd", "difference"])
    assert (table.loc["jsd", "n_a"], table.loc["jsd", "n_b"]) == (0, 12)
    assert table.loc["reverse_kl", "difference"] == math.inf
    assert opd_probe.compare(b, a, 4, resamples=0).set_index("metric").loc["reverse_kl", "difference"] == -math.inf


@pytest.mark.parametrize("change", [{"average": "prompt"}, {"k": 25}, {"k": 0}, {"metrics": ["no"]}])
def test_refused(pair: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        opd_probe.compare(*pair, **({"k": 5} | change))


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_quantiles_from_counts_against_numpy(q: float) -> None:
    generator = np.random.default_rng(0)
    lists = [generator.integers(0, 9, size) for size in (1, 2, 7, 40)]
    histograms = np.stack([np.bincount(values, minlength=11) for values in lists]).astype(float)
    np.testing.assert_allclose(histogram_quantile(histograms, q), [np.quantile(values, q) for values in lists])
    assert np.isnan(histogram_quantile(np.array([[0.0, 0, 0, 5]]), q)).all()
    assert np.isnan(histogram_quantile(np.zeros((1, 4)), q)).all()


@FEW
@pytest.mark.filterwarnings("ignore:.*one token:opd_probe.OpdProbeWarning")
def test_all_wrong_on_both_sides_is_a_difference_that_may_be_other_than_0() -> None:
    """Of other rollouts the next prompt may differ; of the same ones it cannot, whatever the teachers are."""
    rollouts = [{"prompt_id": f"p{index:02d}", "n_states": 3, "score": 0.0} for index in range(12)]
    a, b = (grouped_trace(rollouts, seed=seed) for seed in (1, 2))
    row = opd_probe.compare(a, b, 4).set_index("metric").loc["accuracy"]
    assert row["difference"] == 0
    assert -1 < row["difference_lo"] < -0.05 < 0.05 < row["difference_hi"] < 1
    student, teacher, tokens = random_pair(36, 40)
    other = np.random.default_rng(5).normal(size=teacher.shape).astype(np.float32)
    a, b = (grouped_trace(rollouts, logits=(student, logits, tokens)) for logits in (teacher, other))
    table = opd_probe.compare(a, b, 4).set_index("metric")
    for name in ("accuracy", "response_length"):
        assert table.loc[name, ["difference", "difference_lo", "difference_hi"]].tolist() == [0, 0, 0]
    assert table.loc["reverse_kl", "difference_lo"] < table.loc["reverse_kl", "difference_hi"]
