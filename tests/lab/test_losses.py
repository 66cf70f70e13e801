"""Distillation losses against slow float64 references; the direction of the divergence matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from opd_probe.lab.losses import LossRecipe, Support, Weights, distillation_loss, per_state_loss, support_mask

SHAPE = (3, 5, 40)
TOP_SUPPORTS: list[Support] = ["student", "teacher", "overlap", "non_overlap", "union"]


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn((2, *SHAPE), generator=generator, dtype=torch.float64) * 2
    return draw[0], draw[0] * 0.6 + draw[1]


def reference(s: np.ndarray, t: np.ndarray, recipe: LossRecipe) -> float:
    """The loss of one state by set arithmetic."""
    top_s, top_t = (set(np.argsort(-x)[: recipe.k].tolist()) for x in (s, t))
    support = {
        "student": top_s,
        "teacher": top_t,
        "overlap": top_s & top_t,
        "non_overlap": top_s ^ top_t,
        "union": top_s | top_t,
    }[recipe.support]
    tokens = sorted(support)
    p, q = softmax(s)[tokens], softmax(t)[tokens]
    if recipe.renormalise:
        p, q = p / p.sum(), q / q.sum()
    equal = np.full(len(tokens), 1 / len(tokens) if recipe.renormalise else 1.0)
    weights = {"student_p": p, "teacher_p": q, "none": equal}[recipe.weights]
    return float(sum(w * (np.log(a) - np.log(b)) for w, a, b in zip(weights, p, q, strict=True)))


WEIGHTS: list[Weights] = ["student_p", "teacher_p", "none"]


@pytest.mark.parametrize("support", TOP_SUPPORTS)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_top_k_losses_equal_the_reference(
    logits: tuple[torch.Tensor, torch.Tensor], support: Support, renormalise: bool, weights: Weights
) -> None:
    recipe = LossRecipe(support, 6, renormalise, weights)
    tokens = torch.zeros(SHAPE[:2], dtype=torch.long)
    values = per_state_loss(*logits, tokens, recipe).numpy()
    for index in np.ndindex(*SHAPE[:2]):
        expected = reference(logits[0][index].numpy(), logits[1][index].numpy(), recipe)
        assert values[index] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("support", [*TOP_SUPPORTS, "full", "sampled"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients_are_the_policy_gradients(
    logits: tuple[torch.Tensor, torch.Tensor], support: Support, renormalise: bool, weights: Weights
) -> None:
    """Σ_{v∈S} w(v) (log p̄(v) − log q̄(v)) ∇ log p̄(v), term by term; ∇ log p̄(v) = onehot(v) − p̄, p̄ = 0 outside S."""
    recipe = LossRecipe(support, 6, renormalise, weights)
    student, teacher = (x[0, :1].clone() for x in logits)
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(per_state_loss(student, teacher, torch.tensor([7]), recipe).sum(), student)
    p, q = softmax(student[0].detach().numpy()), softmax(teacher[0].numpy())
    on = np.zeros(len(p), dtype=bool)
    on[7] = True
    if support != "sampled":
        on = support_mask(student.detach(), teacher, recipe)[0].numpy()
    if support in TOP_SUPPORTS and renormalise:
        p, q = p * on / p[on].sum(), q * on / q[on].sum()
    w = {"student_p": p, "teacher_p": q, "none": np.full(len(p), 1 / on.sum() if renormalise else 1.0)}[weights]
    if support == "sampled":
        w = np.ones(len(p))
    expected = sum(w[v] * (np.log(p[v]) - np.log(q[v])) * (np.eye(len(p))[v] - p) for v in np.flatnonzero(on))
    np.testing.assert_allclose(gradient[0].numpy(), expected, atol=1e-12)


def test_one_token_teaches_something_only_without_renormalisation(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student = logits[0].clone().requires_grad_(True)
    tokens = torch.zeros(SHAPE[:2], dtype=torch.long)
    for recipe, learns in ((LossRecipe(k=1), False), (LossRecipe("student", 1, False, "none"), True)):
        (gradient,) = torch.autograd.grad(per_state_loss(student, logits[1], tokens, recipe).sum(), student)
        assert (gradient.abs().max().item() > 1e-3) is learns


def test_full_vocabulary_loss_is_scipys_kl_of_student_from_teacher(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    student, teacher = logits
    tokens = torch.zeros(SHAPE[:2], dtype=torch.long)
    values = per_state_loss(student, teacher, tokens, LossRecipe("full")).numpy()
    p, q = softmax(student.numpy(), axis=-1), softmax(teacher.numpy(), axis=-1)
    np.testing.assert_allclose(values, entropy(p, q, axis=-1), rtol=1e-10)
    assert not np.allclose(values, entropy(q, p, axis=-1), rtol=1e-2)


def test_sampled_token_gradient_is_unbiased_for_the_reverse_kl() -> None:
    """Weighted by p, the per-token gradients add up to the gradient of KL(p ‖ q)."""
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(12, generator=generator, dtype=torch.float64)
    every = torch.arange(12)
    losses = per_state_loss(student.expand(12, 12), teacher.expand(12, 12), every, LossRecipe("sampled"))
    expected_values = log_softmax(student.detach().numpy()) - log_softmax(teacher.numpy())
    np.testing.assert_allclose(losses.detach().numpy(), expected_values, rtol=1e-10)
    (mean_gradient,) = torch.autograd.grad((student.softmax(-1).detach() * losses).sum(), student)
    full = per_state_loss(student, teacher, every[0], LossRecipe("full"))
    (gradient,) = torch.autograd.grad(full, student)
    torch.testing.assert_close(mean_gradient, gradient)


@pytest.mark.parametrize("support", [*TOP_SUPPORTS, "full", "sampled"])
def test_identical_models_give_zero_loss_and_no_gradient(support: Support) -> None:
    student = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    student.requires_grad_(True)
    tokens = torch.tensor([1, 2, 3, 4])
    loss = per_state_loss(student, student.detach().clone(), tokens, LossRecipe(support, k=5)).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-12


def test_empty_support_counts_zero_and_sends_no_gradient() -> None:
    student = torch.tensor([[5.0, 4.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 4.0, 5.0]])
    loss = per_state_loss(student, teacher, torch.tensor([0]), LossRecipe("overlap", k=2))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.tolist() == [0.0]
    assert gradient.abs().max().item() == 0.0


def test_gradient_never_reaches_the_teacher_nor_masked_states(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    student, teacher = (x.clone().requires_grad_(True) for x in logits)
    mask = torch.zeros(SHAPE[:2], dtype=torch.bool)
    mask[0, :2] = True
    tokens = torch.zeros(SHAPE[:2], dtype=torch.long)
    loss = distillation_loss(student, teacher, tokens, mask, LossRecipe("student", k=6))
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad[mask].abs().sum() > 0
    assert student.grad[~mask].abs().sum() == 0
