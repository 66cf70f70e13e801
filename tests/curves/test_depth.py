"""Reward quantiles and the place of the signal along the response, against pandas and a loop over prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opd_probe
from opd_probe.curves import depth as module
from opd_probe.errors import InputError
from opd_probe.trace import Trace
from tests.reference_intervals import left_out_interval
from tests.samples import grouped_trace, many_prompts, random_pair


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_STATES", 16)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return grouped_trace(many_prompts(25), seed=1)


@pytest.mark.parametrize("bins", [1, 3, 20])
def test_quantiles_by_position(trace: Trace, bins: int) -> None:
    table = opd_probe.reward_by_depth(trace, bins=bins)
    states = opd_probe.state_metrics(trace, 4)
    assert table["n_states"].sum() == len(states)
    for _, row in table.iterrows():
        inside = states[states["position"].between(row["position_lo"], row["position_hi"])]
        assert len(inside) == row["n_states"]
        assert row["position"] == pytest.approx(inside["position"].mean())
        assert row["sampled_reward"] == pytest.approx(inside["sampled_reward"].mean(), rel=1e-5)
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            expected = inside["sampled_reward"].quantile(q)
            assert row[f"sampled_reward_q{round(100 * q):02d}"] == pytest.approx(expected, rel=1e-5)
    assert len(table) == min(bins, 8)


def test_unknown_and_infinite_rewards() -> None:
    student, teacher, tokens = random_pair(8, 30)
    trace = grouped_trace([{"prompt_id": "a", "n_states": 8}], logits=(student, teacher, tokens))
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    arrays["teacher_logprob"][0], arrays["teacher_logprob"][1] = np.nan, -np.inf
    row = opd_probe.reward_by_depth(Trace(trace.rollouts, trace.provenance, arrays=arrays), bins=1).iloc[0]
    assert (row["n_states"], row["sampled_reward_n"]) == (8, 7)
    assert row["sampled_reward"] == row["sampled_reward_q05"] == -math.inf
    assert math.isfinite(row["sampled_reward_q50"])


@pytest.mark.parametrize("bins", [1, 4])
def test_signal_against_a_loop(trace: Trace, bins: int) -> None:
    table = opd_probe.signal_by_depth(trace, bins=bins)
    states = opd_probe.state_metrics(trace, 4).merge(
        trace.rollouts.to_pandas()[["rollout_id", "response_length"]], on="rollout_id"
    )
    states["bin"] = ((states["position"] + 0.5) / states["response_length"] * bins).astype(int)
    signal = states["sampled_reward"].abs()
    by_prompt = signal.groupby([states["prompt_id"], states["bin"]]).sum().unstack(fill_value=0.0).sort_index()
    whole = by_prompt.sum()
    np.testing.assert_allclose(table["signal_share"], whole / whole.sum())
    np.testing.assert_allclose(table["cumulative_signal"], whole.cumsum() / whole.sum())
    np.testing.assert_array_equal(table["n_states"], states["bin"].value_counts().sort_index())
    prompts = list(by_prompt.index)
    units = len(states) * len(prompts) / trace.rollouts.num_rows
    for place in range(len(table) - 1):

        def statistic(kept: list[str], place: int = place) -> float:
            total = by_prompt.loc[kept].sum()
            return float(total.cumsum().iloc[place] / total.sum())

        expected = left_out_interval(statistic, prompts, units, 0.0, 1.0)
        actual = tuple(table.loc[place, ["cumulative_signal_lo", "cumulative_signal_hi"]])
        assert actual == pytest.approx(expected, rel=1e-7)
    assert tuple(table.iloc[-1][["cumulative_signal_lo", "cumulative_signal_hi"]]) == (1.0, 1.0)
    assert table["relative"].iloc[-1] == 1
    assert table["cumulative_signal"].iloc[-1] == pytest.approx(1)


def test_no_signal_has_no_place() -> None:
    student, _, tokens = random_pair(8, 30)
    trace = grouped_trace([{"prompt_id": "a", "n_states": 8}], logits=(student, student, tokens))
    assert opd_probe.signal_by_depth(trace)["cumulative_signal"].isna().all()


def test_refused(trace: Trace) -> None:
    for call in (opd_probe.reward_by_depth, opd_probe.signal_by_depth):
        with pytest.raises(InputError, match="bins = 0"):
            call(trace, bins=0)  # type: ignore[operator]
    with pytest.raises(InputError, match="quantiles"):
        opd_probe.reward_by_depth(trace, quantiles=[2])
