"""Every registered metric against the slow reference, for every k of one trace; what is refused; what is null."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning, TraceError
from opd_probe.metrics import METRICS
from opd_probe.metrics.view import running_sums, shared_ids
from opd_probe.trace import Trace
from tests import reference
from tests.samples import confident_pair, grouped_trace, random_pair

pytestmark = pytest.mark.filterwarnings("ignore:k = 1:opd_probe.OpdProbeWarning")

Array = NDArray[Any]


def check_all(student: Array, teacher: Array, tokens: Array, k: int, depth: int, *, atol: float = 2e-6) -> None:
    trace = opd_probe.trace_logits(student, teacher, tokens, depth, jsd=True)
    table = opd_probe.state_metrics(trace, k)
    rows = reference.states(student, teacher, tokens, k, trace_k=depth)
    assert set(rows[0]) == set(METRICS)
    for name in METRICS:
        expected, actual = np.array([row[name] for row in rows]), table[name].to_numpy()
        if name == "extreme_advantage_gap":
            continue  # its token is not unique when advantages tie: see below
        if "_k_for_" in name:
            assert np.all((actual == expected) | (np.isnan(actual) & np.isnan(expected))), name
            continue
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=atol, err_msg=f"{name} at k = {k}")
    for name in ("reverse_kl", "forward_kl", "jsd"):
        expected, actual = np.array([row[name] for row in rows]), table[name].to_numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-12, err_msg=f"{name}, by its size")


@pytest.mark.parametrize("k", range(1, 13))
def test_every_k_from_one_trace(k: int) -> None:
    student, teacher, tokens = random_pair(8, 60, seed=4)
    check_all(student, teacher, tokens, k, 12)


@pytest.mark.parametrize("vocabulary", [60, 5_000])
@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_confident_states(k: int, vocabulary: int) -> None:
    """Where one token holds all but 1e-4 … 1e-8, what is small is right to its own size."""
    student, teacher, tokens = confident_pair(9, vocabulary)
    check_all(student, teacher, tokens, k, 12, atol=1e-9)
    rows = reference.states(student, teacher, tokens, k, trace_k=12)
    assert min(row["reverse_kl"] for row in rows) < 1e-7
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, teacher, tokens, 12), k)
    expected = np.array([row["sampled_reward"] for row in rows])
    assert (table["sampled_reward"] != 0).all()
    np.testing.assert_allclose(table["sampled_reward"][::2], expected[::2], rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_extreme_advantage_gap(k: int) -> None:
    student, teacher, tokens = random_pair(30, 25, seed=7)
    trace = opd_probe.trace_logits(student, teacher, tokens, 8)
    actual = opd_probe.state_metrics(trace, k)["extreme_advantage_gap"].to_numpy()
    rows = reference.states(student, teacher, tokens, k)
    np.testing.assert_allclose(actual, [row["extreme_advantage_gap"] for row in rows], atol=1e-5)


def test_whole_vocabulary_as_support() -> None:
    student, teacher, tokens = random_pair(6, 9)
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, teacher, tokens, 9), 9)
    for support in ("student", "teacher", "overlap", "union"):
        np.testing.assert_allclose(table[f"topk_reverse_kl_{support}"], table["reverse_kl"], rtol=1e-4, atol=1e-6)
    assert table["topk_reverse_kl_non_overlap"].isna().all()
    np.testing.assert_allclose(table["overlap_advantage"], -table["reverse_kl"] / 9, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tiny_vocabularies_with_ties(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 12))
    # Eighths: ties are frequent, and cumulative masses rarely fall on a threshold exactly.
    elements = st.integers(-40, 40).map(lambda value: value / 8)
    student = data.draw(hnp.arrays(np.float32, (2, width), elements=elements))
    teacher = data.draw(hnp.arrays(np.float32, (2, width), elements=elements))
    depth = data.draw(st.integers(1, width))
    k = data.draw(st.integers(1, depth))
    tokens = np.zeros(2, dtype=np.int64)
    trace = opd_probe.trace_logits(student, teacher, tokens, depth, jsd=True)
    table = opd_probe.state_metrics(trace, k)
    for at, row in enumerate(reference.states(student, teacher, tokens, k, trace_k=depth)):
        assert table["overlap_ratio"][at] == row["overlap_ratio"]
        for name in METRICS:
            if "_k_for_" in name or name == "extreme_advantage_gap":
                continue
            np.testing.assert_allclose(table[name][at], row[name], rtol=2e-4, atol=5e-6, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 10), spread=st.floats(0.1, 20))
def test_bounds(seed: int, k: int, spread: float) -> None:
    student, teacher, tokens = random_pair(6, 30, seed=seed, spread=spread, distance=spread)
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, teacher, tokens, 10, jsd=True), k)
    tiny = 1e-5
    for name, metric in METRICS.items():
        values = table[name].dropna()
        if metric.unit in ("share", "probability") and name != "extreme_advantage_gap":
            assert values.between(0, 1 + tiny).all(), name
    assert (table["overlap_advantage"].dropna() <= tiny).all()
    assert (table["reverse_kl"] >= -tiny).all()
    assert (table["student_overlap_mass"] <= table["student_topk_mass"] + tiny).all()
    assert (table["teacher_overlap_mass"] <= table["teacher_topk_mass"] + tiny).all()
    assert (table["extreme_advantage_gap"].abs().dropna() <= 1).all()


@pytest.mark.parametrize("k", [1, 3, 16])
def test_identical_models(k: int) -> None:
    student, _, tokens = random_pair(10, 200, spread=4.0)
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, student, tokens, 16, jsd=True), k)
    assert (table["overlap_ratio"] == 1).all()
    for name in ("reverse_kl", "forward_kl", "jsd", "sampled_reward", "entropy_gap", "extreme_advantage_gap"):
        assert (table[name] == 0).all(), name
    for name in ("overlap_advantage", "topk_reverse_kl_student", "topk_reverse_kl_overlap"):
        assert (table[name].abs() < 1e-12).all(), name
    assert table["topk_reverse_kl_non_overlap"].isna().all()


def test_disjoint_top_sets() -> None:
    student = np.tile(np.array([5, 4, 0, 0, -3, -3], dtype=np.float32), (2, 1))
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, student[:, ::-1].copy(), [0, 5], 6), 2)
    for name in ("overlap_ratio", "student_overlap_mass", "teacher_overlap_mass"):
        assert (table[name] == 0).all(), name
    for name in ("overlap_advantage", "topk_reverse_kl_overlap", "extreme_advantage_gap"):
        assert table[name].isna().all(), name
    np.testing.assert_allclose(table["topk_reverse_kl_non_overlap"], table["topk_reverse_kl_union"])


def test_identity_columns() -> None:
    rollouts = [
        {"prompt_id": "a", "n_states": 2},
        {"prompt_id": "b", "n_states": 0},
        {"prompt_id": "a", "n_states": 3},
    ]
    trace = grouped_trace(rollouts, positions=[0, 1, 2, 5, 7])
    table = opd_probe.state_metrics(trace, 4)
    assert table["rollout_id"].tolist() == ["r0", "r0", "r2", "r2", "r2"]
    assert table["prompt_id"].tolist() == ["a"] * 5
    assert table["position"].tolist() == [0, 1, 2, 5, 7]
    assert table["token_id"].tolist() == trace.column("token_id").tolist()


@pytest.mark.parametrize("k", [0, -1, True, False, 1.5, "4", None])
def test_a_k_that_is_no_count(k: Any) -> None:
    trace = opd_probe.trace_logits(*random_pair(2, 20), 8)
    with pytest.raises(InputError, match="whole number from 1 to 8") as caught:
        opd_probe.state_metrics(trace, k)
    assert "\n" not in str(caught.value)


def test_k_beyond_the_trace_and_beyond_the_vocabulary() -> None:
    trace = opd_probe.trace_logits(*random_pair(2, 20), 8)
    assert len(opd_probe.state_metrics(trace, np.int64(8))) == 2
    with pytest.raises(TraceError, match=r"k = 9.*top 8.*--trace-k 9"):
        opd_probe.state_metrics(trace, 9)
    with pytest.raises(InputError, match="k = 21: beyond the shared vocabulary of 20"):
        opd_probe.state_metrics(trace, 21)


@pytest.mark.filterwarnings("default:k = 1:opd_probe.OpdProbeWarning")
def test_k_of_one_warns() -> None:
    trace = opd_probe.trace_logits(*random_pair(2, 20), 8)
    with pytest.warns(OpdProbeWarning, match="k = 1.*overlap_advantage.*topk_reverse_kl_student"):
        table = opd_probe.state_metrics(trace, 1)
    assert (table["topk_reverse_kl_student"] == 0).all()
    assert (table["topk_reverse_kl_teacher"] == 0).all()


def test_a_metric_without_its_column_is_null() -> None:
    trace = opd_probe.trace_logits(*random_pair(3, 20), 8)
    assert "jsd" not in trace.columns
    assert opd_probe.state_metrics(trace, 4)["jsd"].isna().all()


def test_unknown_metric() -> None:
    trace = opd_probe.trace_logits(*random_pair(3, 20), 8)
    with pytest.raises(InputError, match=r"'overlap'.*overlap_ratio"):
        opd_probe.state_metrics(trace, 4, metrics=["overlap"])


def test_unknown_teacher_values_are_null_exactly_where_they_are_needed() -> None:
    trace = opd_probe.trace_logits(*random_pair(3, 40), 8, jsd=True)
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    shared = np.isin(arrays["student_top_ids"][1], arrays["teacher_top_ids"][1])
    assert shared.any()
    arrays["teacher_logprobs_at_student_top"][1, np.argmax(shared)] = np.nan
    before = opd_probe.state_metrics(trace, 8)
    after = opd_probe.state_metrics(Trace(trace.rollouts, trace.provenance, arrays=arrays), 8)
    touched = {name for name in METRICS if np.isnan(after[name][1]) and not np.isnan(before[name][1])}
    assert touched == {
        "overlap_advantage",
        "overlap_advantage_beyond_one",
        "teacher_overlap_mass",
        "extreme_advantage_gap",
        "topk_reverse_kl_student",
        "topk_reverse_kl_overlap",
        "topk_reverse_kl_union",
        "teachability",
    }
    for name in METRICS:
        np.testing.assert_array_equal(after[name][[0, 2]], before[name][[0, 2]], err_msg=name)
        if name not in touched:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_masked_logits() -> None:
    """A teacher that forbids a token of the overlap's student side: infinite where defined so, never NaN."""
    student = np.array([[3, 2, 1, 0]], dtype=np.float32)
    teacher = np.array([[3, -np.inf, 1, -np.inf]], dtype=np.float32)
    table = opd_probe.state_metrics(opd_probe.trace_logits(student, teacher, [1], 4, jsd=True), 2)
    assert table["reverse_kl"][0] == np.inf
    assert table["topk_reverse_kl_student"][0] == np.inf
    assert table["sampled_reward"][0] == -np.inf
    assert table["topk_reverse_kl_overlap"][0] == 0
    assert np.isfinite(table["forward_kl"][0])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_shared_ids(data: st.DataObject) -> None:
    """Against sets, in overlap and by the rank at which an id enters it; the largest ids included."""
    rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    shift = data.draw(st.sampled_from([0, 2**31 - 31]))
    span = data.draw(st.integers(width, 30))
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    left, right = (
        np.array([generator.permutation(span)[:width] + shift for _ in range(rows)], dtype=np.int32) for _ in range(2)
    )
    in_left, in_right = shared_ids(left, right)
    enters_left, enters_right = shared_ids(left, right, entering=True)
    for at, (one, two) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        assert in_left[at].tolist() == [token in two for token in one]
        assert in_right[at].tolist() == [token in one for token in two]
        for k in range(1, width + 1):
            entered = {one[i] for i in np.flatnonzero(enters_left[at, :k])}
            entered |= {two[i] for i in np.flatnonzero(enters_right[at, :k])}
            assert entered == set(one[:k]) & set(two[:k])
            assert len(entered) == enters_left[at, :k].sum() + enters_right[at, :k].sum()


def test_a_sum_over_ranks() -> None:
    values = np.asarray(np.random.default_rng(0).normal(size=(7, 5)), order="F")
    np.testing.assert_array_equal(running_sums(values.copy(order="F")), np.cumsum(values, axis=1))
