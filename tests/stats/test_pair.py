"""Statistics of pairs against float64: the reference, scipy, direction, small values, zeros, temperature."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch._inductor.config
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy

from opd_probe.errors import LogitError, OpdProbeWarning
from opd_probe.stats.compiled import CompiledReduction
from opd_probe.stats.pair import PairStatistics, pair_statistics, reduce_in_tiles
from tests import reference
from tests.samples import random_pair


def statistics(
    student: NDArray[np.float32],
    teacher: NDArray[np.float32],
    k: int = 1,
    *,
    tokens: NDArray[np.int64] | None = None,
    temperature: float = 1.0,
    jsd: bool = True,
) -> PairStatistics:
    chosen = np.zeros(len(student), dtype=np.int64) if tokens is None else tokens
    return pair_statistics(
        torch.from_numpy(student),
        torch.from_numpy(teacher),
        torch.from_numpy(chosen),
        k,
        temperature=temperature,
        jsd=jsd,
    )


def numpy_of(value: torch.Tensor | None) -> NDArray[np.float64]:
    assert value is not None
    return value.double().numpy()


def divergences(
    student: NDArray[np.float32], teacher: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Reverse, forward and Jensen-Shannon divergence in float64 by the forms without cancellation."""
    log_p = log_softmax(student.astype(np.float64), axis=-1)
    log_q = log_softmax(teacher.astype(np.float64), axis=-1)
    p, q, m = np.exp(log_p), np.exp(log_q), (np.exp(log_p) + np.exp(log_q)) / 2
    x = log_p - log_q
    reverse = (p * x + q - p).sum(-1)
    forward = (p - q - q * x).sum(-1)
    jsd = 0.5 * (rel_entr(p, m) + rel_entr(q, m)).sum(-1)
    return reverse, forward, jsd


@pytest.mark.parametrize(("vocabulary", "k"), [(2, 1), (7, 7), (40, 8), (300, 16), (1500, 5)])
def test_against_the_reference(vocabulary: int, k: int) -> None:
    student, teacher, tokens = random_pair(6, vocabulary, seed=vocabulary)
    result = statistics(student, teacher, k, tokens=tokens)
    for row in range(6):
        log_p, log_q = reference.log_softmax(student[row]), reference.log_softmax(teacher[row])
        top_p, top_q = reference.top_k(student[row], k), reference.top_k(teacher[row], k)
        assert result.student_top_ids[row].tolist() == top_p
        assert result.teacher_top_ids[row].tolist() == top_q
        for actual, expected in (
            (result.student_top_logprobs, log_p[top_p]),
            (result.teacher_logprobs_at_student_top, log_q[top_p]),
            (result.teacher_top_logprobs, log_q[top_q]),
            (result.student_logprobs_at_teacher_top, log_p[top_q]),
            (result.student_logprob, log_p[tokens[row]]),
            (result.teacher_logprob, log_q[tokens[row]]),
            (result.student_entropy, reference.entropy(log_p)),
            (result.teacher_entropy, reference.entropy(log_q)),
            (result.reverse_kl, reference.kl(log_p, log_q)),
            (result.forward_kl, reference.kl(log_q, log_p)),
            (result.jsd, reference.jensen_shannon(log_p, log_q)),
        ):
            np.testing.assert_allclose(numpy_of(actual)[row], expected, rtol=1e-5, atol=2e-6)


def test_against_scipy_with_direction() -> None:
    """A student sure of one token that the teacher doubts: the two directions are far apart."""
    student = np.log(np.array([[0.98, 0.01, 0.01]], dtype=np.float32))
    teacher = np.log(np.array([[0.10, 0.45, 0.45]], dtype=np.float32))
    p, q = np.exp(student[0].astype(float)), np.exp(teacher[0].astype(float))
    result = statistics(student, teacher)
    assert float(result.reverse_kl[0]) == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)
    assert float(result.forward_kl[0]) == pytest.approx(rel_entr(q, p).sum(), rel=1e-5)
    assert float(result.reverse_kl[0]) == pytest.approx(float(entropy(p, q)), rel=1e-5)
    assert float(result.student_entropy[0]) == pytest.approx(float(entropy(p)), rel=1e-5)
    assert float(result.teacher_entropy[0]) == pytest.approx(float(entropy(q)), rel=1e-5)
    assert abs(float(result.reverse_kl[0]) - float(result.forward_kl[0])) > 0.5


def test_swapping_the_models_swaps_the_directions() -> None:
    student, teacher, _ = random_pair(20, 200, spread=3.0, distance=2.0)
    there, back = statistics(student, teacher, 4), statistics(teacher, student, 4)
    torch.testing.assert_close(there.reverse_kl, back.forward_kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.forward_kl, back.reverse_kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.jsd, back.jsd, rtol=1e-5, atol=1e-6)
    assert torch.equal(there.student_top_ids, back.teacher_top_ids)
    assert torch.equal(there.teacher_logprobs_at_student_top, back.student_logprobs_at_teacher_top)
    assert float((there.reverse_kl - there.forward_kl).abs().max()) > 0.1


@pytest.mark.parametrize("vocabulary", [50, 2000])
@pytest.mark.parametrize("target", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
def test_small_divergences_keep_three_digits(vocabulary: int, target: float) -> None:
    student, teacher, _ = random_pair(12, vocabulary, seed=3, distance=math.sqrt(2 * target))
    reverse, forward, jsd = divergences(student, teacher)
    assert 0.1 * target < np.median(reverse) < 10 * target
    result = statistics(student, teacher)
    np.testing.assert_allclose(numpy_of(result.reverse_kl), reverse, rtol=1e-3)
    np.testing.assert_allclose(numpy_of(result.forward_kl), forward, rtol=1e-3)
    np.testing.assert_allclose(numpy_of(result.jsd), jsd, rtol=1e-3 if target >= 1e-6 else 1e-2)


@pytest.mark.parametrize("lost", [-60.0, -90.0, -150.0, -1e9])
@pytest.mark.parametrize("mass", [1e-3, 1e-5])
def test_a_token_that_one_model_as_good_as_forbids(lost: float, mass: float) -> None:
    """Small reverse divergence, huge log-ratio at one token: there the quadratic form must not be cut off."""
    student, _, _ = random_pair(3, 60, seed=1)
    teacher = student.copy()
    log_partition = np.log(np.exp(student[:, 1:].astype(float)).sum(-1))
    teacher[:, 0] = log_partition + np.log(mass)
    student[:, 0] = log_partition + lost
    reverse, forward, _ = divergences(student, teacher)
    np.testing.assert_allclose(reverse, mass, rtol=0.01)
    result = statistics(student, teacher)
    np.testing.assert_allclose(numpy_of(result.reverse_kl), reverse, rtol=2e-3)
    np.testing.assert_allclose(numpy_of(result.forward_kl), forward, rtol=2e-3)
    swapped = statistics(teacher, student)
    np.testing.assert_allclose(numpy_of(swapped.forward_kl), reverse, rtol=2e-3)


@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])
def test_precision_at_a_full_vocabulary(spread: float) -> None:
    student, teacher, _ = random_pair(3, 150_000, seed=5, spread=spread, distance=1.5)
    result = statistics(student, teacher)
    reverse, forward, jsd = divergences(student, teacher)
    log_p = log_softmax(student.astype(np.float64), axis=-1)
    for actual, expected in (
        (result.student_entropy, -(np.exp(log_p) * log_p).sum(-1)),
        (result.reverse_kl, reverse),
        (result.forward_kl, forward),
        (result.jsd, jsd),
    ):
        assert np.all(np.abs(numpy_of(actual) - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))


def test_identical_logits_give_exact_zeros() -> None:
    student, _, _ = random_pair(9, 500, spread=5.0)
    result = statistics(student, student.copy(), 7)
    for value in (result.reverse_kl, result.forward_kl, result.jsd):
        assert not numpy_of(value).any()


class TestZeros:
    def test_student_mass_where_the_teacher_has_none(self) -> None:
        student = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
        teacher = np.array([[-np.inf, 1.0, 2.0]], dtype=np.float32)
        result = statistics(student, teacher, 3)
        assert float(result.reverse_kl[0]) == math.inf
        q = np.exp(reference.log_softmax(teacher[0]))
        p = np.exp(reference.log_softmax(student[0]))
        assert float(result.forward_kl[0]) == pytest.approx(rel_entr(q, p).sum(), rel=1e-5)
        assert float(result.teacher_entropy[0]) == pytest.approx(float(entropy(q)), rel=1e-5)
        assert float(result.teacher_logprob[0]) == -math.inf
        assert 0 < float(numpy_of(result.jsd)[0]) < math.log(2)

    def test_teacher_mass_where_the_student_has_none(self) -> None:
        student = np.array([[-np.inf, 1.0, 2.0]], dtype=np.float32)
        teacher = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
        result = statistics(student, teacher, 3)
        assert float(result.forward_kl[0]) == math.inf
        assert math.isfinite(float(result.reverse_kl[0]))

    def test_the_same_mask_on_both_sides_changes_nothing(self) -> None:
        student, teacher, _ = random_pair(4, 30)
        expected = statistics(student, teacher, 5)
        hole = np.full((4, 10), -np.inf, dtype=np.float32)
        result = statistics(np.hstack([student, hole]), np.hstack([teacher, hole]), 5)
        for name in ("student_entropy", "teacher_entropy", "reverse_kl", "forward_kl", "jsd"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
        assert torch.equal(result.student_top_ids, expected.student_top_ids)

    def test_disjoint_supports(self) -> None:
        student = np.array([[0.0, -np.inf]], dtype=np.float32)
        result = statistics(student, student[:, ::-1].copy(), 2)
        assert float(result.reverse_kl[0]) == float(result.forward_kl[0]) == math.inf
        assert float(numpy_of(result.jsd)[0]) == pytest.approx(math.log(2), rel=1e-6)
        assert float(result.student_entropy[0]) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("vocabulary", [10, 700])
def test_a_bad_logit_names_its_row(value: float, side: str, vocabulary: int) -> None:
    student, teacher, _ = random_pair(6, vocabulary)
    (student if side == "student" else teacher)[4, vocabulary - 1] = value
    with pytest.raises(LogitError, match=side) as caught:
        statistics(student, teacher, 2)
    assert caught.value.row == 4
    assert "\n" not in str(caught.value)


def test_a_state_without_any_finite_logit() -> None:
    student, teacher, _ = random_pair(3, 10)
    teacher[2] = -np.inf
    with pytest.raises(LogitError, match="-inf everywhere") as caught:
        statistics(student, teacher, 2)
    assert caught.value.row == 2


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.9])
def test_temperature(temperature: float) -> None:
    student, teacher, tokens = random_pair(5, 80, seed=2)
    result = statistics(student, teacher, 6, tokens=tokens, temperature=temperature)
    for row in range(5):
        expected = reference.state(student[row], teacher[row], int(tokens[row]), 6, temperature=temperature)
        assert float(result.reverse_kl[row]) == pytest.approx(expected["reverse_kl"], rel=1e-4)
        assert float(result.student_entropy[row]) == pytest.approx(expected["student_entropy"], rel=1e-4)
        reward = float(result.teacher_logprob[row] - result.student_logprob[row])
        assert reward == pytest.approx(expected["sampled_reward"], rel=1e-4, abs=1e-5)


def test_top_k_comes_from_the_logits_before_division() -> None:
    """Division by 1.7 makes two neighbouring floats equal; the larger one must still come first."""
    candidates = [np.float32(1.8)]
    for _ in range(200):
        candidates.append(np.nextafter(candidates[-1], np.float32(2)))
    pair = next((low, high) for low, high in pairwise(candidates) if low / np.float32(1.7) == high / np.float32(1.7))
    logits = np.array([[*pair, 0.5]], dtype=np.float32)
    result = statistics(logits, logits.copy(), 2, temperature=1.7)
    assert result.student_top_ids.tolist() == [[1, 0]]


def test_tokens_outside_have_no_logprob() -> None:
    student, teacher, _ = random_pair(3, 10)
    result = statistics(student, teacher, 2, tokens=np.array([1, -1, 2]))
    assert torch.isnan(result.student_logprob).tolist() == [False, True, False]
    assert torch.isnan(result.teacher_logprob).tolist() == [False, True, False]


def test_arguments_survive() -> None:
    student, teacher, _ = random_pair(3, 100)
    before = student.copy(), teacher.copy()
    statistics(student, teacher, 2)
    np.testing.assert_array_equal(student, before[0])
    np.testing.assert_array_equal(teacher, before[1])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_compiled_passes_agree_with_the_plain_ones(temperature: float) -> None:
    student, teacher, tokens = random_pair(6, 3_000, seed=3)
    student[1, 5] = -np.inf  # a row that the plain passes hand to the masked ones
    inputs = torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(tokens), 16
    plain = pair_statistics(*inputs, temperature=temperature, jsd=True)
    reduction = CompiledReduction(6, torch.device("cpu"))
    compiled = pair_statistics(*inputs, temperature=temperature, jsd=True, reduction=reduction)
    assert reduction.is_compiled
    for name in plain.names():
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-6, atol=1e-6, equal_nan=True)
    whole = reduction(inputs[0], inputs[1], temperature)
    for rows in ([0, 1, 2, 3], [5], [0, 1, 2, 3, 4, 5, 5, 4, 3, 1, 2]):  # fewer than a tile, and tiles that overlap
        part = reduction(inputs[0][rows], inputs[1][rows], temperature)
        for ours, theirs in zip(part, (whole[0][rows], whole[1][rows], whole[2][:, rows]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    if temperature != 1.0:  # another layout is another compilation
        return
    spaced = [torch.cat([one, one], dim=1)[:4, :3_000] for one in inputs[:2]]  # as the shared ids of a wider layer
    for ours, theirs in zip(reduction(*spaced, temperature), reduce_in_tiles(*spaced, temperature), strict=True):
        assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs))
        torch.testing.assert_close(ours[torch.isfinite(ours)], theirs[torch.isfinite(theirs)], rtol=1e-12, atol=1e-12)


def test_without_a_compiler_the_plain_passes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    student, teacher, tokens = random_pair(5, 777, seed=4)  # a shape that no cache holds
    inputs = torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(tokens), 8
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        reduction = CompiledReduction(5, torch.device("cpu"))
        with pytest.warns(OpdProbeWarning, match="going on without it"):
            result = pair_statistics(*inputs, reduction=reduction)
    assert torch.equal(result.reverse_kl, pair_statistics(*inputs).reverse_kl)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_properties(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 90))
    elements = st.floats(-30, 30, width=32)
    student = data.draw(hnp.arrays(np.float32, (3, width), elements=elements))
    teacher = data.draw(hnp.arrays(np.float32, (3, width), elements=elements))
    result = statistics(student, teacher, 2)
    reverse, forward, jsd = divergences(student, teacher)
    for actual, expected in ((result.reverse_kl, reverse), (result.forward_kl, forward), (result.jsd, jsd)):
        assert np.all(np.abs(numpy_of(actual) - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))
    assert np.all(numpy_of(result.reverse_kl) >= -1e-6)
    assert np.all(numpy_of(result.jsd) <= math.log(2) + 1e-6)
    assert np.all(numpy_of(result.student_entropy) <= math.log(width) + 1e-5)


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(-64, 64), seed=st.integers(0, 10_000))
def test_a_shift_of_a_row_changes_nothing(shift: int, seed: int) -> None:
    """Logits are multiples of 1/256, so that the shift itself does not round."""
    student, teacher, tokens = random_pair(4, 90, seed=seed)
    student, teacher = np.round(student * 256) / 256, np.round(teacher * 256) / 256
    plain = statistics(student, teacher, 9, tokens=tokens)
    moved = statistics(student + np.float32(shift), teacher - np.float32(shift), 9, tokens=tokens)
    for name in plain.names():
        if not name.endswith("log_partition"):
            assert torch.equal(getattr(plain, name), getattr(moved, name)), name


def test_row_order_does_not_matter() -> None:
    student, teacher, tokens = random_pair(30, 333)
    order = np.random.default_rng(0).permutation(30)
    plain = statistics(student, teacher, 6, tokens=tokens)
    moved = statistics(student[order], teacher[order], 6, tokens=tokens[order])
    for name in plain.names():
        assert torch.equal(getattr(plain, name)[torch.from_numpy(order)], getattr(moved, name)), name
