"""Distillation losses at student-visited states, from the logits of both models.

p is the student's next-token distribution, q the teacher's. The direction is always the reverse divergence
KL(p ‖ q), the one that on-policy distillation minimises; all values are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from opd_probe.lab.content import added

__all__ = ["LossRecipe", "Support", "Weights", "distillation_loss", "per_state_loss", "support_mask"]

Support = Literal["student", "teacher", "overlap", "non_overlap", "union", "full", "sampled"]
Weights = Literal["student_p", "teacher_p", "none"]


@dataclass(frozen=True, slots=True)
class LossRecipe:
    """What is supervised at each state.

    Attributes:
        support: ``student`` S_p (the student's k most probable tokens), ``teacher`` S_q, ``overlap`` S_p ∩ S_q,
            ``non_overlap`` S_p △ S_q, ``union`` S_p ∪ S_q, ``full`` (the whole vocabulary), or ``sampled``
            (the response token alone).
        k: the size of the top sets; without effect for ``full`` and ``sampled``.
        renormalise: whether both distributions are renormalised on the support (Eq. 5) or the true probabilities
            are used; without effect for ``full`` and ``sampled``.
        weights: how much each token of the support counts: its probability under the student or the teacher
            (renormalised with the distributions), or all alike (1, or one over the size of the support if
            renormalised); without effect for ``sampled``.
    """

    support: Support = "student"
    k: int = 16
    renormalise: bool = True
    weights: Weights = added("student_p")


def _top(logits: torch.Tensor, k: int) -> torch.Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(k, dim=-1).indices, True)


def support_mask(student_logits: torch.Tensor, teacher_logits: torch.Tensor, recipe: LossRecipe) -> torch.Tensor:
    """[..., V] booleans: the tokens that are supervised at each state. Not for ``sampled``."""
    if recipe.support == "full":
        return torch.ones_like(student_logits, dtype=torch.bool)
    if recipe.support == "student":
        return _top(student_logits, recipe.k)
    if recipe.support == "teacher":
        return _top(teacher_logits, recipe.k)
    student, teacher = _top(student_logits, recipe.k), _top(teacher_logits, recipe.k)
    if recipe.support == "overlap":
        return student & teacher
    if recipe.support == "non_overlap":
        return student ^ teacher
    if recipe.support == "union":
        return student | teacher
    raise ValueError(f"support {recipe.support!r} has no token set per state")


def per_state_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, token_ids: torch.Tensor, recipe: LossRecipe
) -> torch.Tensor:
    """The loss at each state, [...]; gradients flow into ``student_logits`` alone.

    On a support S with weights w: Σ_{v∈S} w(v) (log p̄(v) − log q̄(v)), with p̄ and q̄ renormalised on S or the true
    probabilities; 0 where S is empty. Its gradient is the policy gradient Σ_{v∈S} w(v) (log p̄(v) − log q̄(v))
    ∇ log p̄(v) that trainers take: the difference is a reward, not differentiated. With w = p̄ renormalised, or on the
    full vocabulary, it is exactly ∇KL(p̄ ‖ q̄); for ``sampled``, whose value is log p(ŷ) − log q(ŷ) (Eq. 3), an
    unbiased estimate of ∇KL(p ‖ q).

    Args:
        student_logits, teacher_logits: [..., V].
        token_ids: [...] the sampled tokens.
    """
    log_p = student_logits.log_softmax(dim=-1)
    log_q = teacher_logits.detach().log_softmax(dim=-1)
    if recipe.support == "sampled":
        index = token_ids.unsqueeze(-1)
        log_p, log_q = log_p.gather(-1, index), log_q.gather(-1, index)
        return _policy_gradient(log_p, log_q, torch.ones_like(log_p)).sum(dim=-1)
    mask = support_mask(student_logits.detach(), teacher_logits.detach(), recipe)
    if recipe.renormalise:
        # A finite floor instead of -inf: an empty support then gives a finite row, which the product masks to 0.
        floor = torch.finfo(log_p.dtype).min / 4
        log_p = log_p.masked_fill(~mask, floor).log_softmax(dim=-1)
        log_q = log_q.masked_fill(~mask, floor).log_softmax(dim=-1)
    if recipe.weights == "student_p" and (recipe.renormalise or recipe.support == "full"):
        terms = log_p.exp() * (log_p - log_q)  # differentiated as it stands, it has the policy gradient
    else:
        terms = _policy_gradient(log_p, log_q, _weights(log_p, log_q, mask, recipe))
    return torch.where(mask, terms, 0.0).sum(dim=-1)


def _weights(log_p: torch.Tensor, log_q: torch.Tensor, mask: torch.Tensor, recipe: LossRecipe) -> torch.Tensor:
    if recipe.weights == "student_p":
        return log_p.detach().exp()
    if recipe.weights == "teacher_p":
        return log_q.exp()
    size = mask.sum(dim=-1, keepdim=True).clamp(min=1) if recipe.renormalise else 1
    return torch.ones_like(log_q) / size


def _policy_gradient(log_p: torch.Tensor, log_q: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Values w (log p − log q) whose gradients are w (log p − log q) ∇ log p."""
    rewards = weights * (log_p.detach() - log_q)
    return rewards + rewards * (log_p - log_p.detach())


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    recipe: LossRecipe,
) -> torch.Tensor:
    """The token mean of :func:`per_state_loss` over the states where ``mask`` is True; a scalar."""
    values = per_state_loss(student_logits, teacher_logits, token_ids, recipe)
    return values[mask].mean()
