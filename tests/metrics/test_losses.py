"""Losses on supports, their gradients and the one-sample variance, against float64 autograd over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import opd_probe
from opd_probe.curves.losses import default_ks
from opd_probe.errors import InputError, TraceError
from opd_probe.metrics.losses import (
    FORMS,
    NO_CLAMP,
    SUPPORTS,
    Clamp,
    full_gradient,
    loss_gradient,
    one_sample_variance,
    parse_clamp,
    sampled_loss,
    support_loss,
    surroundings,
)
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace
from tests.reference import top_k
from tests.samples import as_served

VOCABULARY, STATES = 12, 10
CUT = Clamp("cut", log_prob_min=-2.5, loss_min=-0.4, loss_max=0.4)


def make(depth: int, *, vocabulary: int = VOCABULARY, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Trace]:
    """float64 logits of both models, and their trace with tokens drawn from the student."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (2.0 * torch.randn(STATES, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (one.float().double() for one in (p, q))
    drawn = torch.multinomial(p.softmax(-1), 1, generator=generator)[:, 0]
    return p, q, opd_probe.trace_logits(p, q, drawn, k=depth)


def block_of(trace: Trace) -> dict[str, NDArray[np.generic]]:
    (block,) = trace.blocks(trace.columns)
    return block


def support_ids(p: torch.Tensor, q: torch.Tensor, support: str, k: int) -> list[int]:
    own, other = top_k(p.numpy(), k), top_k(q.numpy(), k)
    return {
        "student": own,
        "teacher": other,
        "overlap": [v for v in own if v in other],
        "non_overlap": [v for v in own if v not in other] + [v for v in other if v not in own],
        "union": own + [v for v in other if v not in own],
    }[support]


def reference(
    logits: torch.Tensor, other: torch.Tensor, support: str, k: int, form: str, clamp: Clamp
) -> tuple[float, NDArray[np.float64]]:
    """The loss of one state and its gradient by autograd, as one would write them in a trainer."""
    z = logits.clone().requires_grad_(True)
    ids = support_ids(logits, other, support, k)
    if not ids:
        return (0.0 if form == "plain" else math.nan), np.full(len(logits), 0.0 if form == "plain" else math.nan)
    log_p, log_q = z.log_softmax(-1)[ids], other.log_softmax(-1)[ids]
    if form == "reward":
        weights = log_p.exp() if support == "non_overlap" else log_p.softmax(-1)
        reward = -(weights * (log_p - log_q)).detach()
        (-reward * log_p).sum().backward()
        assert z.grad is not None
        return float(-reward.sum()), z.grad.numpy()
    log_p, log_q = log_p.clamp_min(clamp.log_prob_min), log_q.clamp_min(clamp.log_prob_min)
    if form == "renormalised":
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    loss = (log_p.exp() * (log_p - log_q)).sum().clamp(clamp.loss_min, clamp.loss_max)
    loss.backward()
    assert z.grad is not None
    return float(loss.detach()), z.grad.numpy()


def full_reference(logits: torch.Tensor, other: torch.Tensor) -> NDArray[np.float64]:
    z = logits.clone().requires_grad_(True)
    log_p = z.log_softmax(-1)
    (log_p.exp() * (log_p - other.log_softmax(-1))).sum().backward()
    assert z.grad is not None
    return np.asarray(z.grad.numpy())


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 1e-9 else math.nan


def holds(bounds: tuple[NDArray[np.float64], NDArray[np.float64]], truth: list[float], *, exact: bool) -> None:
    """The truth lies within, and where everything is listed is what both ends say."""
    least, most = bounds
    for low, high, value in zip(least, most, truth, strict=True):
        if math.isnan(value):
            assert math.isnan(low)
            assert math.isnan(high)
            continue
        slack = 2e-6 * (1.0 + abs(value))
        assert low - slack <= value <= high + slack
        assert not exact or high - low <= slack


def combinations() -> Iterator[tuple[str, str, Clamp]]:
    for support in SUPPORTS:
        for form in FORMS:
            for clamp in (NO_CLAMP, CUT, parse_clamp("zero"))[: 1 if form == "reward" else 3]:
                yield support, form, clamp


@pytest.mark.parametrize("depth", [VOCABULARY, 7, 4])
@pytest.mark.parametrize("k", [1, 4])
def test_every_loss_and_gradient_is_that_of_autograd(depth: int, k: int) -> None:
    p, q, trace = make(depth)
    block, exact = block_of(trace), depth == VOCABULARY
    around, view = surroundings(block, depth, VOCABULARY), TopView(block, k)
    full = [full_reference(*pair) for pair in zip(p, q, strict=True)]
    holds(full_gradient(around).norm, [float(np.linalg.norm(g)) for g in full], exact=exact)
    seen = set()
    for support, form, clamp in combinations():
        loss = support_loss(view, support, form, clamp)
        found = loss_gradient(loss, around)
        truth = [reference(a, b, support, k, form, clamp) for a, b in zip(p, q, strict=True)]
        np.testing.assert_allclose(loss.value, [value for value, _ in truth], atol=2e-6)
        gradients = [gradient for _, gradient in truth]
        holds(found.norm, [float(np.linalg.norm(one)) for one in gradients], exact=exact)
        holds(found.inner, [float(a @ b) for a, b in zip(gradients, full, strict=True)], exact=exact)
        holds(found.cosine, [cosine(a, b) for a, b in zip(gradients, full, strict=True)], exact=exact)
        seen |= {(form, clamp.name, bool(at)) for at in (loss.value == clamp.loss_max) | (loss.value == clamp.loss_min)}
    assert k == 1 or {("plain", "cut", True), ("plain", "cut", False), ("plain", "zero", True)} <= seen


@pytest.mark.parametrize("depth", [VOCABULARY, 7, 3])
@pytest.mark.parametrize("clamp", [NO_CLAMP, CUT, Clamp("low", log_prob_min=-2.0), Clamp("top", -math.inf, -1.0, 1.0)])
def test_the_sampled_token_and_the_variance_over_all_that_could_be_sampled(depth: int, clamp: Clamp) -> None:
    p, q, trace = make(depth, seed=1)
    block, exact = block_of(trace), depth == VOCABULARY
    view, around = TopView(block, depth), surroundings(block, depth, VOCABULARY)
    value, gradient = sampled_loss(view, around, clamp)
    losses, lengths, cosines = [], [], []
    variances: dict[bool, list[float]] = {False: [], True: []}
    for a, b, drawn in zip(p, q, trace.column("token_id"), strict=True):
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        apart = log_p.clamp_min(clamp.log_prob_min) - log_q.clamp_min(clamp.log_prob_min)
        apart = apart.clamp(-clamp.loss_max, clamp.loss_max)
        full, kl = full_reference(a, b), float((log_p.exp() * (log_p - log_q)).sum())
        z = a.clone().requires_grad_(True)
        scores = torch.stack(
            [torch.autograd.grad(z.log_softmax(-1)[token], z)[0] for token in range(VOCABULARY)]
        ).numpy()
        losses.append(float(apart[drawn]))
        one = float(apart[drawn]) * scores[drawn]
        lengths.append(float(np.linalg.norm(one)))
        cosines.append(cosine(one, full))
        for baseline, found in variances.items():
            estimates = (apart.numpy() - (kl if baseline else 0.0))[:, None] * scores
            mean = log_p.exp().numpy() @ estimates
            found.append(float(log_p.exp().numpy() @ ((estimates - mean) ** 2).sum(1)))
    np.testing.assert_allclose(value, losses, atol=2e-6)
    holds(gradient.norm, lengths, exact=exact)
    holds(gradient.cosine, cosines, exact=exact)
    for baseline, truth in variances.items():
        found = one_sample_variance(view, around, clamp, baseline=baseline)
        holds(found.bounds, truth, exact=exact)
        assert exact or np.isfinite(found.bounds[1]).all() == clamp.bounded
        if exact:
            np.testing.assert_allclose(found.estimate, truth, rtol=1e-4)


def test_the_variances_estimate_is_unbiased_over_the_tokens_that_are_drawn() -> None:
    """At one state, over every token that could be drawn with its probability: the variance itself."""
    p, q, _ = make(3, seed=2)
    a, b = p[0], q[0]
    log_p = a.log_softmax(-1)
    every = torch.arange(VOCABULARY)
    trace = opd_probe.trace_logits(a.expand(VOCABULARY, -1), b.expand(VOCABULARY, -1), every, k=3)
    whole = opd_probe.trace_logits(a[None], b[None], every[:1], k=VOCABULARY)
    for baseline in (False, True):
        found = one_sample_variance(
            TopView(block_of(trace), 3), surroundings(block_of(trace), 3, VOCABULARY), NO_CLAMP, baseline=baseline
        )
        block = block_of(whole)
        around = surroundings(block, VOCABULARY, VOCABULARY)
        truth = one_sample_variance(TopView(block, VOCABULARY), around, NO_CLAMP, baseline=baseline).bounds[0][0]
        # p² and the mean's square are those of the lists: what is left out of them is no more than the bounds say.
        slack = 3 * float(surroundings(block_of(trace), 3, VOCABULARY).mass[1][0])
        assert float(log_p.exp().numpy() @ found.estimate) == pytest.approx(truth, rel=slack)


def test_the_table_has_the_metrics_of_eq_5_and_the_stored_divergence() -> None:
    _, _, trace = make(8)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(trace, [2, 8], clamps=["none", "zero", "verl:-10:10"])
    with pytest.warns(opd_probe.OpdProbeWarning):
        row = opd_probe.summarize(trace, k=8)
    rows = table.set_index(["support", "k", "form", "clamp"]).sort_index()
    for support in SUPPORTS:
        one = rows.loc[(support, 8, "renormalised", "none")]
        assert one["loss"] == pytest.approx(row[f"topk_reverse_kl_{support}"], rel=1e-6)
        assert one["loss_n"] == row[f"topk_reverse_kl_{support}_n"]
    overlap = rows.loc[("overlap", 8, "plain", "none")]
    assert overlap["student_mass"] == pytest.approx(row["student_overlap_mass"])
    assert overlap["teacher_mass"] == pytest.approx(row["teacher_overlap_mass"])
    full = table[table["support"] == "full"].iloc[0]
    assert full["loss"] == pytest.approx(row["reverse_kl"], rel=1e-6)
    assert full["cosine"] == full["batch_cosine"] == 1.0
    sampled = table[table["support"] == "sampled"].set_index("clamp")
    assert list(sampled.index) == ["none", "verl:-10:10"]
    assert sampled.loc["none", "loss"] == pytest.approx(-row["sampled_reward"], rel=1e-6)
    # Nobody knows how these tokens were drawn, and outside the lists nothing bounds the variance: it is not guessed.
    assert math.isnan(sampled.loc["none", "variance"])
    assert math.isinf(sampled.loc["none", "variance_most"])
    assert "no bound" in sampled.loc["none", "missing"]
    assert np.isfinite(sampled.loc["verl:-10:10", "variance_most"])
    plain, zero = (rows.loc[("teacher", 2, "plain", name)] for name in ("none", "zero"))
    assert zero["loss"] > plain["loss"]
    assert plain["negative_share"] > 0 == zero["negative_share"]


def test_a_vocabulary_that_is_listed_whole_is_exact() -> None:
    p, q, trace = make(VOCABULARY, seed=3)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(trace, [4])
    found = table[(table["support"] == "student") & (table["form"] == "plain") & (table["clamp"] == "none")].iloc[0]
    pairs = list(zip(p, q, strict=True))
    gradients = np.stack([reference(*pair, "student", 4, "plain", NO_CLAMP)[1] for pair in pairs])
    full = np.stack([full_reference(*pair) for pair in pairs])
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradients, axis=1).mean(), rel=1e-5)
    assert found["cosine"] == pytest.approx(
        np.mean([cosine(a, b) for a, b in zip(gradients, full, strict=True)]), rel=1e-5
    )
    assert found["batch_cosine"] == pytest.approx(cosine(gradients.reshape(-1), full.reshape(-1)), rel=1e-5)
    assert table["variance"].notna().sum() == 2
    assert table["missing"].isna().all()


def test_an_empty_support_has_a_plain_loss_of_zero_and_no_other() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0, -1.0]])
    trace = opd_probe.trace_logits(logits, logits.flip(1), torch.tensor([0]), k=4)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(trace, [2], clamps=["none"]).set_index(["support", "form"])
    assert table.loc[("overlap", "plain"), "loss"] == 0.0 == table.loc[("overlap", "plain"), "gradient_norm"]
    assert table.loc[("overlap", "plain"), "student_mass"] == 0.0
    assert math.isnan(table.loc[("overlap", "plain"), "cosine"])
    for form in ("renormalised", "reward"):
        assert math.isnan(table.loc[("overlap", form), "loss"])
        assert table.loc[("overlap", form), "loss_n"] == 0


def test_impossible_tokens_are_infinite_losses_and_never_a_number() -> None:
    p = torch.tensor([[2.0, 1.0, 0.0, -math.inf], [1.0, 0.5, 0.0, 0.2]])
    q = torch.tensor([[1.0, -math.inf, 0.5, 0.0], [0.0, 0.2, 0.1, 0.3]])
    trace = opd_probe.trace_logits(p, q, torch.tensor([0, 1]), k=4)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(trace, [2], clamps=["none"]).set_index(["support", "form"])
    assert table.loc[("student", "plain"), "loss"] == math.inf
    assert table.loc[("student", "plain"), "cosine_n"] == 1


def test_what_a_served_teacher_does_not_tell_is_null_and_says_why() -> None:
    _, _, trace = make(8, seed=4)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(as_served(trace), [4], clamps=["none"])
    assert table[["cosine", "batch_cosine", "variance"]].isna().all(axis=None)
    union = table[(table["support"] == "union") & (table["form"] == "plain")].iloc[0]
    assert math.isnan(union["loss"])
    assert "not known" in union["missing"]
    teacher = table[(table["support"] == "teacher") & (table["form"] == "plain")].iloc[0]
    assert np.isfinite(teacher["loss"])
    assert "reverse KL" in teacher["missing"]


def test_a_student_that_is_its_teacher_has_no_direction() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    trace = opd_probe.trace_logits(logits, logits, torch.tensor([0, 1, 2]), k=9)
    with pytest.warns(opd_probe.OpdProbeWarning, match="no intervals"):
        table = opd_probe.losses(trace, [3], clamps=["none"])
    renormalised = table[table["form"] == "renormalised"]
    assert (renormalised["loss"].dropna().abs() < 1e-6).all()
    assert renormalised["cosine"].isna().all()


@pytest.mark.parametrize("text", ["", "verl", "verl:one:two", "verl:10:-10", "verl:-10:nan", "verl:0:1", "-10:10"])
def test_a_clamp_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected none, zero, or verl:MIN:MAX"):
        parse_clamp(text)


def test_a_k_that_the_trace_cannot_answer_for_is_an_error() -> None:
    _, _, trace = make(4)
    assert default_ks(4) == [1, 4]
    assert default_ks(10) == [1, 4, 10]
    assert default_ks(128) == [1, 4, 16, 64]
    with pytest.raises(TraceError, match="holds the top 4 only"):
        opd_probe.losses(trace, [5])
    with pytest.raises(InputError, match="k = 0"):
        opd_probe.losses(trace, [0])
    with pytest.raises(InputError, match="at least one"):
        opd_probe.losses(trace, clamps=[])
