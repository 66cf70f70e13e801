"""The course of a run against obvious loops: leave a prompt out of every trace at once, fit the line again."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opd_probe
from opd_probe.curves.trend import course, trend_weights
from opd_probe.trace import Trace
from tests.reference_intervals import left_out_interval
from tests.samples import grouped_trace, many_prompts

FEW = pytest.mark.filterwarnings("ignore:.* prompt:opd_probe.OpdProbeWarning")
K = 5
NAMES = ("overlap_ratio", "reverse_kl", "student_entropy")


def values(trace: Trace, prompts: list[str], name: str) -> float:
    states = opd_probe.state_metrics(trace, K)
    ids = {row["rollout_id"] for row in trace.rollouts.to_pylist() if row["prompt_id"] in prompts}
    return float(states[states["rollout_id"].isin(ids)][name].mean())


def units_of(trace: Trace) -> float:
    """States over rollouts per prompt."""
    rollouts = trace.rollouts.num_rows
    return trace.n_states / (rollouts / len(set(trace.rollouts.column("prompt_id").to_pylist())))


def slope(series: list[float]) -> float:
    """By numpy's own fit."""
    return float(np.polyfit(range(len(series)), series, 1)[0]) * (len(series) - 1)


def run(n: int, *, prompts: int = 9) -> list[Trace]:
    return [grouped_trace(many_prompts(prompts, seed=seed), seed=seed) for seed in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_trend_is_the_fitted_line_with_a_prompt_left_out_of_all_steps(n: int) -> None:
    traces = run(n)
    found = course(traces, range(n), K, NAMES, "token")
    prompts = sorted(set(traces[0].rollouts.column("prompt_id").to_pylist()))
    for name in NAMES:
        trend = found.trend(name)

        def statistic(kept: list[str], name: str = name) -> float:
            return slope([values(trace, kept, name) for trace in traces])

        ends = {"overlap_ratio": 1.0}.get(name, math.inf) * np.abs(trend_weights(n)).sum() / 2
        units = min(units_of(trace) for trace in traces)
        lo, hi = left_out_interval(statistic, prompts, units, -ends, ends)
        assert trend.value == pytest.approx(statistic(prompts), rel=1e-9, abs=1e-12)
        assert (trend.lo, trend.hi) == pytest.approx((lo, hi), rel=1e-6)


@FEW
def test_of_two_steps_the_trend_is_the_paired_difference() -> None:
    first, last = run(2)
    found = course([first, last], [0, 10], K, NAMES, "token")
    table = opd_probe.compare(first, last, K).set_index("metric")
    for name in (*NAMES, "response_length", "accuracy", "truncation_rate"):
        assert found.trend(name).value == pytest.approx(table.loc[name, "difference"], rel=1e-12)
        ends = table.loc[name, "difference_lo"], table.loc[name, "difference_hi"]
        assert (found.trend(name).lo, found.trend(name).hi) == pytest.approx(ends, rel=1e-9, nan_ok=True)
        assert found.values(name)[0] == pytest.approx(table.loc[name, "a"], rel=1e-12)


def test_without_a_common_prompt_variances_add_up() -> None:
    first = grouped_trace(many_prompts(8, seed=1), seed=1)
    other = [{**row, "prompt_id": f"other-{row['prompt_id']}"} for row in many_prompts(8, seed=2)]
    last = grouped_trace(other, seed=2)
    found = course([first, last], [0, 1], K, ("reverse_kl",), "token")
    assert (found.n_common, list(found.n_prompts)) == (0, [8, 8])
    variance = 0.0
    for trace in (first, last):
        names = sorted(set(trace.rollouts.column("prompt_id").to_pylist()))
        whole = values(trace, names, "reverse_kl")
        left = [values(trace, [one for one in names if one != name], "reverse_kl") for name in names]
        variance += 8 / 7 * sum((7 / 8 * (whole - one)) ** 2 for one in left)
    trend = found.trend("reverse_kl")
    half = (trend.hi - trend.lo) / 2
    assert 1.96 * math.sqrt(variance) <= half < 2.6 * math.sqrt(variance)  # Student's t of at least 7 degrees


def test_the_weights_sum_to_nothing_and_measure_a_line_exactly() -> None:
    for n in range(2, 7):
        weights = trend_weights(n)
        assert weights.sum() == pytest.approx(0, abs=1e-12)
        assert weights @ (3 + 2 * np.arange(n)) == pytest.approx(2 * (n - 1))
    assert trend_weights(1).tolist() == [0.0]
