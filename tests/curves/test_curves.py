"""Curves along the position and along the rank, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opd_probe
from opd_probe.errors import InputError
from opd_probe.metrics import METRICS
from opd_probe.trace import Trace
from tests.samples import grouped_trace, many_prompts

MEANS = [name for name, metric in METRICS.items() if metric.summary == "mean"]
QUANTITIES = [
    "student_topk_mass",
    "teacher_topk_mass",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "overlap_ratio",
]
pytestmark = pytest.mark.filterwarnings("ignore:k = 1:opd_probe.OpdProbeWarning")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return grouped_trace(many_prompts(21), seed=2)


@pytest.mark.parametrize("average", ["token", "rollout"])
@pytest.mark.parametrize("bins", [1, 3, 8, 100])
def test_position_curve(trace: Trace, bins: int, average: str) -> None:
    states = opd_probe.state_metrics(trace, 5)
    curve = opd_probe.position_curve(trace, 5, bins=bins, average=average, resamples=20)
    assert len(curve) <= bins
    assert curve["n_states"].sum() == len(states)
    assert curve["position_lo"].iloc[0] == 0
    assert curve["position_hi"].iloc[-1] == states["position"].max()
    assert (curve["position_lo"].to_numpy()[1:] == curve["position_hi"].to_numpy()[:-1] + 1).all()
    for _, row in curve.iterrows():
        inside = states[states["position"].between(row["position_lo"], row["position_hi"])]
        assert row["n_states"] == len(inside)
        assert row["position"] == pytest.approx(inside["position"].mean())
        grouped = inside[MEANS].mean() if average == "token" else inside.groupby("rollout_id")[MEANS].mean().mean()
        for name in MEANS:
            assert row[f"{name}_n"] == inside[name].notna().sum()
            assert row[name] == pytest.approx(grouped[name], rel=1e-9, nan_ok=True), name


def test_one_bin_is_the_summary(trace: Trace) -> None:
    curve = opd_probe.position_curve(trace, 5, bins=1).iloc[0]
    row = opd_probe.summarize(trace, 5)
    for name in MEANS:
        for suffix in ("", "_lo", "_hi", "_n"):
            assert curve[name + suffix] == pytest.approx(row[name + suffix], rel=1e-9), name


def test_bins_without_states_are_left_out() -> None:
    rollouts = [{"prompt_id": str(index), "n_states": 2} for index in range(20)]
    trace = grouped_trace(rollouts, positions=[0, 90] * 20)
    curve = opd_probe.position_curve(trace, 4, bins=10, metrics=["overlap_ratio"])
    assert curve["position"].tolist() == [0, 90]
    assert not any(name.startswith("reverse_kl") for name in curve.columns)


def test_a_number_of_bins_that_is_none(trace: Trace) -> None:
    with pytest.raises(InputError, match="bins = 0"):
        opd_probe.position_curve(trace, 5, bins=0)


@pytest.mark.parametrize("average", ["token", "rollout"])
def test_mass_curve_for_every_k(trace: Trace, average: str) -> None:
    curve = opd_probe.mass_curve(trace, average=average)
    assert curve["k"].tolist() == list(range(1, trace.K + 1))
    for _, row in curve.iterrows():
        expected = opd_probe.summarize(trace, int(row["k"]), average=average, metrics=QUANTITIES)
        for name in QUANTITIES:
            for suffix in ("", "_lo", "_hi", "_n"):
                assert row[name + suffix] == pytest.approx(expected[name + suffix], rel=1e-9), (
                    name,
                    row["k"],
                )


def test_mass_curve_of_a_whole_vocabulary_ends_at_one() -> None:
    last = opd_probe.mass_curve(grouped_trace(many_prompts(20), vocabulary=9, k=9)).iloc[-1]
    for name in QUANTITIES:
        assert last[name] == pytest.approx(1.0, abs=1e-6)


def test_one_prompt() -> None:
    single = grouped_trace([{"prompt_id": "a", "n_states": 5}])
    with pytest.warns(opd_probe.OpdProbeWarning, match="1 prompt"):
        curve = opd_probe.mass_curve(single)
    assert math.isnan(curve["overlap_ratio_lo"][0])
    assert np.isfinite(curve["overlap_ratio"]).all()
