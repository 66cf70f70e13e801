"""Curves along the position and along the rank, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import opd_probe
from opd_probe.curves.mass import QUANTITIES as ALL_QUANTITIES
from opd_probe.curves.mass import by_rank
from opd_probe.errors import InputError
from opd_probe.metrics import METRICS
from opd_probe.trace import Trace
from opd_probe.trace.schema import TOP_COLUMNS
from tests import reference
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


def reference_quantities(trace: Trace, at: int, k: int) -> dict[str, float]:
    """What the lists of one state say, token by token in float64."""
    ids_p, ids_q, log_p, log_q, other_q = (
        trace.column(name)[at, :k].tolist()
        for name in (
            "student_top_ids",
            "teacher_top_ids",
            "student_top_logprobs",
            "teacher_logprobs_at_student_top",
            "teacher_top_logprobs",
        )
    )
    overlap = [rank for rank, token in enumerate(ids_p) if token in ids_q and token >= 0]
    left, right = np.array(log_p, dtype=np.float64), np.array(log_q, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        kl = reference.renormalised_kl(left, right, overlap)
    vanished = overlap and (left[overlap].max() == -math.inf or right[overlap].max() == -math.inf)
    return {
        "student_topk_mass": math.fsum(math.exp(value) for value in log_p),
        "teacher_topk_mass": math.fsum(math.exp(value) for value in other_q),
        "student_overlap_mass": math.fsum(math.exp(left[rank]) for rank in overlap),
        "teacher_overlap_mass": math.fsum(math.exp(right[rank]) for rank in overlap),
        "overlap_ratio": len(overlap) / k,
        "overlap_advantage": math.nan if vanished or not overlap else -kl / len(overlap),
    }


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_rank_against_the_reference(data: st.DataObject) -> None:
    """Ties, impossible tokens, overlaps of next to no mass, empty overlaps, K = 1 and K = V."""
    width = data.draw(st.integers(1, 10))
    elements = st.one_of(st.integers(-12, 12).map(lambda value: value / 4), st.sampled_from([-math.inf, -600.0, 30.0]))
    student, teacher = (data.draw(hnp.arrays(np.float32, (3, width), elements=elements)) for _ in range(2))
    student[:, data.draw(st.integers(0, width - 1))] = 0.0  # something is possible
    teacher[:, data.draw(st.integers(0, width - 1))] = 0.0
    depth = data.draw(st.integers(1, width))
    trace = opd_probe.trace_logits(student, teacher, np.zeros(3, dtype=np.int64), depth)
    block = {name: trace.column(name) for name in TOP_COLUMNS}
    for name, values in zip(ALL_QUANTITIES, by_rank(block), strict=True):
        for at in range(3):
            for k in range(1, depth + 1):
                expected = reference_quantities(trace, at, k)[name]
                assert values[at, k - 1] == pytest.approx(expected, rel=1e-9, abs=1e-11, nan_ok=True), (name, at, k)


@pytest.mark.filterwarnings("ignore::opd_probe.OpdProbeWarning")
def test_every_rank_where_the_teacher_did_not_tell() -> None:
    """Unknown values: the mass curve and the summaries at each k agree on what is undefined, and on the rest."""
    whole = grouped_trace(many_prompts(8), seed=5)
    arrays = {name: whole.column(name).copy() for name in whole.columns}
    unknown = np.random.default_rng(0).random(arrays["student_top_ids"].shape) < 0.2
    ids, other = arrays["student_top_ids"], arrays["teacher_top_ids"]
    arrays["teacher_logprobs_at_student_top"][unknown] = np.nan
    arrays["teacher_top_logprobs"][(other[:, :, None] == np.where(unknown, ids, -1)[:, None, :]).any(2)] = np.nan
    trace = Trace(whole.rollouts, whole.provenance, arrays=arrays)
    curve = opd_probe.mass_curve(trace, resamples=0)
    for _, row in curve.iterrows():
        expected = opd_probe.summarize(trace, int(row["k"]), resamples=0, metrics=ALL_QUANTITIES)
        for name in ALL_QUANTITIES:
            assert row[f"{name}_n"] == expected[f"{name}_n"], (name, row["k"])
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), (name, row["k"])
    assert 0 < curve["overlap_advantage_n"].iloc[-1] < len(trace)


def test_one_prompt() -> None:
    single = grouped_trace([{"prompt_id": "a", "n_states": 5}])
    with pytest.warns(opd_probe.OpdProbeWarning, match="1 prompt"):
        curve = opd_probe.mass_curve(single)
    assert math.isnan(curve["overlap_ratio_lo"][0])
    assert np.isfinite(curve["overlap_ratio"]).all()
