"""Intervals against scipy.stats, their limits, and what holds of every one of them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import opd_probe
from benchmarks import coverage
from opd_probe.curves.clusters import Sums, units_of
from opd_probe.curves.intervals import difference, interval
from opd_probe.errors import OpdProbeWarning
from opd_probe.metrics import METRICS, TRACE_METRICS
from opd_probe.metrics.registry import Range
from tests.reference_intervals import from_changes
from tests.samples import grouped_trace, many_prompts, random_pair

Floats = NDArray[np.float64]
RANGES: list[Range] = [
    (0, 1),
    (-1, 1),
    (0, math.log(2)),
    (0, math.inf),
    (1, math.inf),
    (-math.inf, 0),
    (-math.inf, math.inf),
]


def sums(total: Floats, count: Floats, units: float | None = None) -> Sums:
    """Of one quantity, [c] each."""
    none = np.zeros((len(total), 1))
    given = np.array([count.sum() if units is None else units])
    return Sums(total[:, None], count[:, None].astype(np.float64), none, none, given)


def ends(total: Floats, count: Floats, span: Range, units: float | None = None) -> tuple[float, float]:
    lo, hi = interval(sums(total, count, units).estimate([span]))
    return float(lo[0]), float(hi[0])


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Floats, Floats, Range, float]:
    """Sums and counts of prompts whose values lie in a range, at its bounds more often than not, and units."""
    low, high = span = draw(st.sampled_from(RANGES))
    finite = max(low, -50.0), min(high, 50.0)
    inside = st.floats(*finite, allow_subnormal=False)
    n = draw(st.integers(2, 40))
    values = draw(st.lists(st.one_of(st.sampled_from(finite), inside), min_size=n, max_size=n))
    count = np.array(draw(st.lists(st.integers(1, 500), min_size=n, max_size=n)), dtype=float)
    return np.array(values) * count, count, span, draw(st.floats(0.5, 1e7))


@settings(max_examples=100, deadline=None)
@given(prompts())
def test_every_interval_against_scipy_and_within_its_range(case: tuple[Floats, Floats, Range, float]) -> None:
    total, count, (low, high), units = case
    lo, hi = ends(total, count, (low, high), units)
    value, n = total.sum() / count.sum(), len(total)
    left_out = [(np.delete(total, i).sum()) / np.delete(count, i).sum() for i in range(n)]
    changes = [(n - 1) / n * (value - other) for other in left_out]
    expected = from_changes(value, changes, units, low, high)
    assert (lo, hi) == pytest.approx(expected, rel=1e-6, abs=1e-7, nan_ok=True)
    assert math.isnan(lo) == math.isnan(hi)
    if math.isnan(lo):
        assert not (math.isfinite(low) and math.isfinite(high))
        assert n < 4 or np.ptp(total / count) < 1e-6 * abs(value) + 1e-300
        return
    assert low <= lo < hi <= high
    assert lo - 1e-9 * abs(value) <= value <= hi + 1e-9 * abs(value)
    order = np.random.default_rng(0).permutation(n)
    assert ends(total[order], count[order], (low, high), units) == pytest.approx((lo, hi), rel=1e-6, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(prompts(), st.floats(0.01, 100))
def test_a_mirrored_or_scaled_quantity_has_a_mirrored_or_scaled_interval(
    case: tuple[Floats, Floats, Range, float], factor: float
) -> None:
    total, count, (low, high), units = case
    lo, hi = ends(total, count, (low, high), units)
    mirrored = ends(-factor * total, count, (-factor * high, -factor * low), units)
    assert mirrored == pytest.approx((-factor * hi, -factor * lo), rel=1e-6, abs=1e-7 * factor, nan_ok=True)


@pytest.mark.parametrize("n", [2, 3, 10, 64, 500])
def test_0_of_n_is_clopper_and_pearson_of_0_of_twice_as_many(n: int) -> None:
    """And n of n likewise: with one rollout a prompt or with many of the same prompt."""
    upper = stats.binomtest(0, 2 * n).proportion_ci(0.95, "exact").high
    for rollouts in (1, 4):
        count = np.full(n, float(rollouts))
        assert ends(np.zeros(n), count, (0, 1), float(n)) == pytest.approx((0, upper))
        assert ends(count, count, (0, 1), float(n)) == pytest.approx((1 - upper, 1))


def test_many_prompts_give_the_normal_interval() -> None:
    generator = np.random.default_rng(0)
    values = generator.beta(2, 3, 20_000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    for span in ((0, 1), (0, math.inf), (-math.inf, 1), (-math.inf, math.inf)):
        lo, hi = ends(values, np.ones(len(values)), span)
        assert (lo, hi) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_what_hardly_varies_has_the_normal_interval(scale: float) -> None:
    """Beta and gamma distributions of 10¹² and more, where quantile functions give up."""
    values = scale * (0.5 + 1e-8 * np.random.default_rng(0).normal(size=30))
    half = stats.t.ppf(0.975, 29) * values.std(ddof=1) / math.sqrt(30)
    for span in ((0.0, scale), (0.0, math.inf)):
        lo, hi = ends(values, np.ones(30), span, 1e20)
        assert half < (hi - lo) / 2 < 1.5 * half


def test_infinite_values_leave_one_end() -> None:
    total, count = np.random.default_rng(0).exponential(size=(12, 1)), np.ones((12, 1))
    plus = np.zeros((12, 1))
    plus[3] = 1.0
    none, units = np.zeros((12, 1)), np.array([12.0])
    finite = interval(Sums(total, count - plus, none, none, units).estimate([(0, math.inf)]))
    for sign, span in ((1, (0, math.inf)), (-1, (-math.inf, 0))):
        infinite = (plus, none) if sign > 0 else (none, plus)
        one = Sums(sign * np.where(plus, 0.0, total), count, *infinite, units).estimate([span])
        lo, hi = interval(one)
        assert (one.value[0], (hi if sign > 0 else lo)[0]) == (sign * math.inf, sign * math.inf)
        assert math.isfinite((lo if sign > 0 else hi)[0])
    assert np.isfinite(finite).all()
    both = Sums(total, count, plus, np.roll(plus, 1), units).estimate([(-math.inf, math.inf)])
    assert np.isnan([both.value[0], *(end[0] for end in interval(both))]).all()
    only = Sums(none, plus, plus, none, units).estimate([(0, math.inf)])
    assert only.value[0] == math.inf
    assert np.isnan(interval(only)).all()


def test_one_cluster_that_alone_defines_a_quantity_says_nothing_of_its_spread() -> None:
    total, count = np.zeros(30), np.zeros(30)
    total[3], count[3] = 5.0, 10.0
    assert np.isnan(ends(total, count, (0, 1))).all()


def test_steps_of_rollouts_side_by_side() -> None:
    """Two prompts of three rollouts with 10 states each: 20 steps. A rollout where nothing is defined counts not."""
    counts, codes = np.full((7, 1), 10.0), np.array([0, 0, 0, 1, 1, 1, 1])
    counts[6] = 0
    assert units_of(counts, codes, 2).tolist() == [20.0]
    assert units_of(counts, np.where(codes, -1, codes), 2).tolist() == [10.0]
    assert units_of(np.ones((7, 1)), codes, 2).tolist() == [2.0]
    assert units_of(np.zeros((7, 1)), codes, 2).tolist() == [0.0]


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_every_interval_of_a_trace_lies_in_the_declared_range(n: int, right: float) -> None:
    """Rollouts all right or all wrong, models that agree everywhere, answers of one length: nothing is certain."""
    student, _, tokens = random_pair(8 * n, 40)
    rows = [{"prompt_id": f"p{i // 2}", "n_states": 4, "score": right, "finish_reason": "length"} for i in range(2 * n)]
    for trace in (grouped_trace(many_prompts(n)), grouped_trace(rows, logits=(student, student, tokens))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpdProbeWarning)
            row = opd_probe.summarize(trace, 4) | opd_probe.diagnose(trace)
        for name in [name.removesuffix("_lo") for name in row if name.endswith("_lo")]:
            value, lo, hi = (row[name + end] for end in ("", "_lo", "_hi"))
            metric = METRICS.get(name) or TRACE_METRICS.get(name)
            share = name in ("accuracy", "truncation_rate", "reward_auroc")
            low, high = metric.range if metric else (0, 1) if share else (-math.inf, math.inf)
            if not math.isnan(lo):
                assert low <= lo < hi <= high, name
                assert lo - 1e-6 <= value <= hi + 1e-6, name
            elif math.isfinite(low) and math.isfinite(high) and row[f"{name}_n"] and name != "reward_auroc":
                assert math.isnan(value), name


GOALS = {10: 0.92, 64: 0.94}
"""Coverage at numbers of prompts."""


class TestCoverage:
    """What ``benchmarks/coverage.py`` measures at length, at some length: seeded, so that nothing is left to chance."""

    @pytest.mark.parametrize("pair", [(0.5, 0.5), (4.5, 0.5), (0.9, 0.1), (0.5, 4.5), (0.1, 0.9)])
    @pytest.mark.parametrize("prompts", [3, 5, 10, 20, 64])
    def test_shares(self, pair: tuple[float, float], prompts: int) -> None:
        (row,) = coverage.measure(coverage.of_difficulty(*pair), prompts, 1_000, [coverage.OURS])
        assert row["coverage"] >= (GOALS.get(prompts, 0.92) if pair[0] >= pair[1] else 0.92)
        assert (row["none"], row["flat"], row["outside"]) == (0, 0, 0)

    @pytest.mark.parametrize("metric", coverage.DEMO_METRICS)
    def test_heavy_tails_at_20_prompts(self, metric: str) -> None:
        rows = coverage.measure(coverage.of_demo(metric, 100), 20, 1_000, [coverage.OURS, coverage.BEFORE])
        assert rows[0]["coverage"] >= 0.90
        assert rows[0]["coverage"] > rows[1]["coverage"]

    @pytest.mark.parametrize("better", [0.0, 1.0])
    def test_paired_differences(self, better: float) -> None:
        for prompts, goal in GOALS.items():
            (row,) = coverage.measure(coverage.of_two_runs(0.5, 0.5, better), prompts, 1_000, [coverage.OURS])
            assert row["coverage"] >= goal
            assert (row["none"], row["flat"], row["outside"]) == (0, 0, 0)

    @pytest.mark.parametrize("positives", [2, 5, 10])
    def test_auroc(self, positives: int) -> None:
        ours, before = coverage.measure_auroc(positives, 0.8, 64, 150)
        assert ours["coverage"] >= max(0.94, before["coverage"])

    def test_pairs_are_taken_together(self) -> None:
        """The same prompts twice: nothing varies, whatever varies in each."""
        (one,) = coverage.of_difficulty(0.5, 0.5).draw(np.random.default_rng(0), 20, 3)
        both = difference(one.estimate(), one.estimate())
        assert interval(both, exact=True)[0].tolist() == interval(both, exact=True)[1].tolist() == [0, 0, 0]
        lo, hi = interval(both)
        np.testing.assert_allclose(lo, -hi)
        assert (hi > 0).all()
