"""Quantities of whole traces against obvious float64 ones, with intervals against a loop over prompts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.metrics import TRACE_METRICS
from opd_probe.metrics.context import with_special_ids
from opd_probe.trace import Trace
from tests.reference_intervals import from_changes
from tests.samples import grouped_trace, many_prompts

SPECIAL = [0, 1, 5, 8, 13]
FEW = pytest.mark.filterwarnings("ignore:.* prompt:opd_probe.OpdProbeWarning")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return with_special_ids(grouped_trace(many_prompts(30), seed=4), SPECIAL)


@pytest.fixture(scope="module")
def states(trace: Trace) -> pd.DataFrame:
    table = opd_probe.state_metrics(trace, 4)
    return table.merge(trace.rollouts.to_pandas()[["rollout_id", "score"]], on="rollout_id")


def reference(drawn: pd.DataFrame, whole: pd.DataFrame) -> dict[str, float]:
    """Every quantity of the drawn states; percentiles, medians and quarters are those of the whole trace."""
    size, entropy, kl = whole["absolute_reward"], whole["student_entropy"], whole["reverse_kl"]
    cut, fork = np.quantile(size, 0.99), np.quantile(entropy, 0.8)
    sure, near = entropy.median(), kl.median()
    special = drawn["token_id"].isin(SPECIAL)
    row = {
        "top_1pct_signal_share": drawn["absolute_reward"][drawn["absolute_reward"] >= cut].sum()
        / drawn["absolute_reward"].sum(),
        "forking_reverse_kl_share": drawn["reverse_kl"][drawn["student_entropy"] > fork].sum()
        / drawn["reverse_kl"].sum(),
        "special_token_gap": drawn["sampled_reward"][special].mean() - drawn["sampled_reward"][~special].mean(),
    }
    for name, uncertain in (("confident", False), ("uncertain", True)):
        for end, wrong in (("agreeing", False), ("wrong", True)):
            inside = ((drawn["student_entropy"] > sure) == uncertain) & ((drawn["reverse_kl"] > near) == wrong)
            row[f"{name}_{end}_share"] = inside.mean()
    everyone = whole[whole["score"] == 0].groupby("rollout_id")["teacher_nll"].mean()
    order = np.exp(everyone).sort_values(kind="stable")
    rollouts = drawn.drop_duplicates("copy")["rollout_id"]
    for quarter in range(4):
        members = [name for place, name in enumerate(order.index) if place * 4 // len(order) == quarter]
        values = [order[name] for name in rollouts if name in members]
        row[f"wrong_teacher_perplexity_q{quarter + 1}"] = float(np.mean(values)) if values else math.nan
    return row


def test_values_and_intervals(trace: Trace, states: pd.DataFrame) -> None:
    row = opd_probe.diagnose(trace)
    whole = states.assign(copy=states["rollout_id"])
    expected = reference(whole, whole)
    assert set(expected) == set(TRACE_METRICS)
    prompts = sorted(set(states["prompt_id"]))
    groups = dict(list(states.groupby("prompt_id")))
    without = [reference(whole[whole["prompt_id"] != prompt], whole) for prompt in prompts]
    groups = trace.rollouts.to_pandas().set_index("rollout_id")["prompt_id"]
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6), name
        in_rollouts = whole.groupby("rollout_id").size()
        if name.startswith("wrong_teacher"):
            values = np.exp(whole[whole["score"] == 0].groupby("rollout_id")["teacher_nll"].mean()).sort_values()
            quarter = int(name[-1]) - 1
            members = [one for place, one in enumerate(values.index) if place * 4 // len(values) == quarter]
            in_rollouts = pd.Series(1, index=members)
        in_prompts = in_rollouts.groupby(groups.loc[in_rollouts.index].to_numpy()).size()
        n = len(in_prompts)
        changes = [(n - 1) / n * (value - other[name]) for other in without]
        expected_ends = from_changes(
            value, changes, in_rollouts.sum() / in_prompts.mean(), *TRACE_METRICS[name].range, clusters=n
        )
        assert (row[f"{name}_lo"], row[f"{name}_hi"]) == pytest.approx(expected_ends, rel=1e-5, nan_ok=True), name
    assert row["forking_entropy"] == pytest.approx(np.quantile(states["student_entropy"], 0.8), rel=1e-6)
    assert row["confident_wrong_share_n"] == len(states)
    wrong = int((trace.rollouts.to_pandas()["score"] == 0).sum())
    assert sum(row[f"wrong_teacher_perplexity_q{quarter}_n"] for quarter in (1, 2, 3, 4)) == wrong


def test_the_four_regions_are_everything(trace: Trace) -> None:
    row = opd_probe.diagnose(trace, resamples=0)
    regions = [name for name in row if name.endswith(("agreeing_share", "wrong_share"))]
    assert len(regions) == 4
    assert sum(row[name] for name in regions) == pytest.approx(1)
    assert math.isnan(row["confident_wrong_share_lo"])


def test_one_token_that_holds_everything() -> None:
    trace = grouped_trace([{"prompt_id": f"p{i}", "n_states": 20} for i in range(10)])
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    arrays["student_logprob"][:] = arrays["teacher_logprob"][:] = -1
    arrays["teacher_logprob"][57] = -9
    row = opd_probe.diagnose(Trace(trace.rollouts, trace.provenance, arrays=arrays), resamples=0)
    assert row["top_1pct_signal_share"] == 1
    arrays["teacher_logprob"][57] = -1
    assert math.isnan(
        opd_probe.diagnose(Trace(trace.rollouts, trace.provenance, arrays=arrays))["top_1pct_signal_share"]
    )


@FEW
def test_what_is_unknown_is_null() -> None:
    trace = grouped_trace(
        [{"prompt_id": "a", "n_states": 4}, {"prompt_id": "b", "n_states": 3}, {"prompt_id": "c", "n_states": 0}]
    )
    row = opd_probe.diagnose(trace)
    for name in ("special_token_gap", "wrong_teacher_perplexity_q1", "wrong_teacher_perplexity_q4"):
        assert math.isnan(row[name])
        assert row[f"{name}_n"] == 0
    assert row["confident_wrong_share_n"] == 7


def test_infinite_rewards_and_divergences_are_left_out() -> None:
    trace = grouped_trace(many_prompts(20))
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    arrays["teacher_logprob"][3], arrays["reverse_kl"][5] = -np.inf, np.inf
    row = opd_probe.diagnose(Trace(trace.rollouts, trace.provenance, arrays=arrays), resamples=20)
    n = trace.n_states
    assert (row["top_1pct_signal_share_n"], row["forking_reverse_kl_share_n"]) == (n - 1, n - 1)
    assert 0 < row["top_1pct_signal_share"] < 1
    assert row["confident_wrong_share_n"] == n
    none = {name: values[:0] for name, values in arrays.items()}
    empty = Trace(trace.rollouts.slice(0, 0), trace.provenance, arrays=none)
    assert math.isnan(opd_probe.diagnose(empty, resamples=0)["confident_wrong_share"])
