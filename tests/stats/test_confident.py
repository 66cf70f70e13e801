"""States where one token holds nearly everything, as trained models have them: every path against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import kl_div

import opd_probe
from opd_probe.stats.compiled import SHAPES, CompiledReduction
from opd_probe.stats.pair import PairStatistics, pair_statistics
from opd_probe.stats.projection import mass_outside
from opd_probe.stats.single import single_statistics

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]

RELATIVE = 5e-6
"""Half of what docs/metrics.md promises; the columns of a trace are float32, which is 6e-8."""


def log_softmax(logits: Logits, temperature: float) -> Floats:
    """In float64, with the rest beside each row's first maximum summed by itself."""
    a = logits.astype(np.float64)
    top = a.argmax(-1)[:, None]
    a = (a - np.take_along_axis(a, top, -1)) / temperature
    rest = np.exp(a)
    np.put_along_axis(rest, top, 0.0, -1)
    log_p: Floats = a - np.log1p(rest.sum(-1, keepdims=True))
    return log_p


def divergence(log_p: Floats, log_q: Floats) -> Floats:
    """KL(p ‖ q) in float64, [T], without cancellation: Σ p (e^−x − 1 + x) with x = log p − log q."""
    with np.errstate(invalid="ignore"):
        x = np.nan_to_num(log_p - log_q, nan=0.0, posinf=np.inf, neginf=-np.inf)
    near = np.where(np.abs(x) < 1, x, 0.0)
    p, q = np.exp(log_p), np.exp(log_q)
    return np.where(np.abs(x) < 1, p * (np.expm1(-near) + near), kl_div(p, q)).sum(-1)


def expected(student: Logits, teacher: Logits, temperature: float = 1.0) -> dict[str, Floats]:
    """Every statistic over the whole vocabulary by its definition in float64, [T]; zeros count as they should."""
    log_p, log_q = log_softmax(student, temperature), log_softmax(teacher, temperature)
    log_m = np.logaddexp(log_p, log_q) - math.log(2)
    return {
        "student_entropy": entropy_of(log_p),
        "teacher_entropy": entropy_of(log_q),
        "reverse_kl": divergence(log_p, log_q),
        "forward_kl": divergence(log_q, log_p),
        "jsd": 0.5 * (divergence(log_p, log_m) + divergence(log_q, log_m)),
    }


def entropy_of(logs: Floats) -> Floats:
    """−Σ p log p, [T], with 0 log 0 = 0."""
    return -(np.exp(logs) * np.where(np.isneginf(logs), 0.0, logs)).sum(-1) + 0.0


def confident_pair(
    states: int, width: int, rest: float, *, seed: int = 0, apart: float = 0.1
) -> tuple[Logits, Logits, NDArray[np.int64]]:
    """Two models that leave ``rest`` and 1.3 times as much beside the first id, with Zipf's tail in random order."""
    generator = np.random.default_rng(seed)
    tail = -1.2 * np.log(np.arange(1, width)) + generator.normal(0, 0.5, (states, width - 1))
    tail = generator.permuted(tail, axis=1)
    found = []
    for noise, mass in ((0.0, rest), (apart, 1.3 * rest)):
        logits = np.zeros((states, width))
        logits[:, 1:] = tail + generator.normal(0, 1, tail.shape) * noise
        logits[:, 0] = np.log(np.exp(logits[:, 1:]).sum(-1)) + np.log((1 - mass) / mass)
        found.append((logits + generator.normal(0, 5, (states, 1))).astype(np.float32))
    return found[0], found[1], np.zeros(states, dtype=np.int64)


def agree(found: PairStatistics, student: Logits, teacher: Logits, temperature: float = 1.0) -> None:
    for name, exact in expected(student, teacher, temperature).items():
        value = getattr(found, name).double().numpy()
        np.testing.assert_allclose(value, exact, rtol=RELATIVE, atol=0, err_msg=name)
        assert not np.signbit(value).any(), name
    for side, logits in (("student", student), ("teacher", teacher)):
        logs = log_softmax(logits, temperature)
        ids = getattr(found, f"{side}_top_ids").numpy()
        np.testing.assert_allclose(
            getattr(found, f"{side}_top_logprobs").numpy(), np.take_along_axis(logs, ids, 1), rtol=RELATIVE
        )
        np.testing.assert_allclose(getattr(found, f"{side}_logprob").numpy(), logs[:, 0], rtol=RELATIVE)


@pytest.mark.parametrize("rest", [0.5, 1e-2, 4e-5, 4e-6, 1e-7, 1e-8, 1e-13])
@pytest.mark.parametrize(("states", "width"), [(8, 2), (8, 3), (6, 700), (2, 151_937)])
def test_plain_passes(states: int, width: int, rest: float) -> None:
    student, teacher, tokens = confident_pair(states, width, rest, seed=width)
    found = pair_statistics(*map(torch.from_numpy, (student, teacher, tokens)), 2, jsd=True)
    agree(found, student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rest", [0.5, 4e-5, 4e-6, 1e-7, 1e-8, 1e-13])
def test_compiled_passes(rest: float, temperature: float) -> None:
    """The shape of another test of compiled passes, so that nothing is compiled for this one."""
    student, teacher, tokens = confident_pair(6, 3_000, rest)
    reduction = CompiledReduction(6, torch.device("cpu"))
    inputs = map(torch.from_numpy, (student, teacher, tokens))
    found = pair_statistics(*inputs, 16, temperature=temperature, jsd=True, reduction=reduction)
    assert reduction.is_compiled
    assert (
        torch._dynamo.config.recompile_limit >= SHAPES
    )  # a process may meet more than the 8 shapes of torch's own limit
    agree(found, student, teacher, temperature)


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_other_temperatures(temperature: float) -> None:
    student, teacher, tokens = confident_pair(6, 700, 1e-4)
    found = pair_statistics(*map(torch.from_numpy, (student, teacher, tokens)), 16, temperature=temperature, jsd=True)
    agree(found, student, teacher, temperature)


@pytest.mark.parametrize("rest", [1e-2, 4e-6, 1e-8])
def test_one_model_alone(rest: float) -> None:
    student, _, tokens = confident_pair(6, 900, rest)
    found = single_statistics(*map(torch.from_numpy, (student, tokens, np.tile([0, 5], (6, 1)))), 16)
    logs = log_softmax(student, 1.0)
    np.testing.assert_allclose(found.logprob.numpy(), logs[:, 0], rtol=RELATIVE)
    np.testing.assert_allclose(found.logprobs_at.numpy(), logs[:, [0, 5]], rtol=RELATIVE)
    np.testing.assert_allclose(found.entropy.numpy(), expected(student, student)["student_entropy"], rtol=RELATIVE)


def test_masked_ids_beside_a_confident_token() -> None:
    student, teacher, tokens = confident_pair(8, 300, 1e-6)
    student[:, 100:] = teacher[:, 100:] = -np.inf
    student[3, 1:] = teacher[3, 1:] = -np.inf  # one token holds everything
    found = pair_statistics(*map(torch.from_numpy, (student, teacher, tokens)), 16, jsd=True)
    agree(found, student, teacher)
    assert float(found.reverse_kl[3]) == float(found.student_logprob[3]) == float(found.student_entropy[3]) == 0.0


def test_tied_maxima() -> None:
    student, teacher, tokens = confident_pair(8, 300, 1e-6)
    student[:, 7] = student[:, 200] = student[:, 0]
    teacher[:4, 7] = teacher[:4, 0]
    found = pair_statistics(*map(torch.from_numpy, (student, teacher, tokens)), 3, jsd=True)
    agree(found, student, teacher)
    assert found.student_top_ids.tolist() == [[0, 7, 200]] * 8


def test_a_step_between_floats_is_no_tie() -> None:
    """Two logits whose difference vanishes in the exponential: together they hold 1, half each."""
    student = np.array([[0.0, -1e-20, -50.0]], dtype=np.float32)
    found = pair_statistics(*map(torch.from_numpy, (student, student.copy(), np.zeros(1, dtype=np.int64))), 1)
    assert float(found.student_logprob[0]) == pytest.approx(-math.log(2), rel=1e-6)


def test_equal_logits_are_exactly_0_apart() -> None:
    student, _, tokens = confident_pair(6, 3_000, 1e-7)
    reduction = CompiledReduction(6, torch.device("cpu"))
    for how in (None, reduction):
        inputs = map(torch.from_numpy, (student, student.copy(), tokens))
        found = pair_statistics(*inputs, 3, jsd=True, reduction=how)
        for value in (found.reverse_kl, found.forward_kl, found.jsd):
            assert value is not None
            assert not value.any()
            assert not torch.signbit(value).any()
        assert torch.equal(found.student_logprob, found.teacher_logprob)


@pytest.mark.parametrize("rest", [4e-5, 4e-6, 1e-7, 1e-8])
def test_what_a_trace_says_of_them(rest: float) -> None:
    """From logits through the stored columns to the metrics: the reward keeps its sign and size at every state."""
    student, teacher, tokens = confident_pair(400, 40, rest, seed=3)
    teacher[::5, 0] = student[::5, 0] + 1.0  # here the teacher is the surer one
    teacher[::5, 1:] = student[::5, 1:]
    trace = opd_probe.trace_logits(student, teacher, tokens, 16)
    frame = opd_probe.state_metrics(trace, 16)
    reward = log_softmax(teacher, 1.0)[:, 0] - log_softmax(student, 1.0)[:, 0]
    np.testing.assert_allclose(frame["sampled_reward"], reward, rtol=RELATIVE)
    assert (frame["sampled_reward"] != 0).all()
    assert opd_probe.summarize(trace, 16, resamples=0)["negative_reward_share"] == np.mean(reward < 0) == 0.8
    for name in ("reverse_kl", "forward_kl"):
        np.testing.assert_allclose(frame[name], expected(student, teacher)[name], rtol=RELATIVE)
    # What is renormalised on a list is made of float32 columns: its terms have six digits.
    assert (frame["topk_reverse_kl_student"] > 0).all()
    assert (frame["overlap_advantage"] < 0).all()


@pytest.mark.parametrize("rest", [0.3, 4e-6, 1e-8])
def test_the_shared_share_of_rewards_below_0_is_that_of_every_path(rest: float) -> None:
    student, teacher, tokens = confident_pair(6, 3_000, rest)
    ways: dict[str, Callable[[], PairStatistics]] = {}
    inputs = [torch.from_numpy(one) for one in (student, teacher, tokens)]
    compiled = CompiledReduction(6, torch.device("cpu"))
    ways["plain"] = lambda: pair_statistics(*inputs, 16)
    ways["compiled"] = lambda: pair_statistics(*inputs, 16, reduction=compiled)
    found = {name: way() for name, way in ways.items()}
    alone = [single_statistics(one, inputs[2], torch.zeros(6, 1, dtype=torch.int64), 16) for one in inputs[:2]]
    for pair in found.values():
        for ours, theirs in ((pair.student_logprob, alone[0].logprob), (pair.teacher_logprob, alone[1].logprob)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        assert torch.equal(pair.teacher_logprob < pair.student_logprob, alone[1].logprob < alone[0].logprob)


@pytest.mark.parametrize("offset", [0.0, 150.0])
def test_mass_outside_beside_large_logits(offset: float) -> None:
    logits = np.array([[30.0, 3.1], [12.0, 11.3]]) + offset
    rest = np.array([[14.3, 2.2], [0.4, -np.inf]]) + offset
    found = mass_outside(torch.from_numpy(rest).float(), torch.logsumexp(torch.from_numpy(logits), -1))
    together = np.concatenate([logits.astype(np.float32), rest.astype(np.float32)], axis=1).astype(np.float64)
    np.testing.assert_allclose(found.numpy(), np.exp(log_softmax(together, 1.0))[:, 2:].sum(-1), rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), width=st.integers(2, 80), rest=st.floats(-16, -0.3), step=st.floats(-4, 0.5))
def test_any_confidence(data: st.DataObject, width: int, rest: float, step: float) -> None:
    """Any tail, any distance, ids of probability 0 and equal maxima among them, at any temperature."""
    temperature = data.draw(st.sampled_from([1.0, 0.6, 1.5]))
    tail = data.draw(hnp.arrays(np.float32, (2, width - 1), elements=st.floats(-30, 0, width=32)))
    moved = data.draw(hnp.arrays(np.float32, (2, width - 1), elements=st.floats(-1, 1, width=32)))
    top = np.full((2, 1), -rest * math.log(10) * temperature)
    student = np.concatenate([top, tail], axis=1).astype(np.float32)
    teacher = student.copy()
    teacher[:, 1:] += moved * np.float32(10**step)
    if width > 2:
        student[1, -1] = teacher[1, -1] = data.draw(st.sampled_from([-np.inf, student[1, 0]]))
    inputs = torch.from_numpy(student), torch.from_numpy(teacher), torch.zeros(2, dtype=torch.int64)
    found = pair_statistics(*inputs, 1, temperature=temperature, jsd=True)
    for name, exact in expected(student, teacher, temperature).items():
        value = getattr(found, name).double().numpy()
        assert not np.signbit(value).any(), name
        # Sums of float64 terms that cancel are good to about 1e-16 of the mass beside the largest token.
        assert np.all(np.abs(value - exact) <= RELATIVE * np.abs(exact) + 1e-14), (name, value, exact)
    for logits, logprob in ((student, found.student_logprob), (teacher, found.teacher_logprob)):
        np.testing.assert_allclose(logprob.numpy(), log_softmax(logits, temperature)[:, 0], rtol=RELATIVE)
