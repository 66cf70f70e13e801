"""Distillation losses at student-visited states, from the logits of both models.

p is the student's next-token distribution, q the teacher's. The direction is always the reverse divergence
KL(p ‖ q), the one that on-policy distillation minimises; all values are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["LossRecipe", "Support", "distillation_loss", "per_state_loss", "support_mask"]

Support = Literal["student", "teacher", "overlap", "non_overlap", "union", "full", "sampled"]


@dataclass(frozen=True, slots=True)
class LossRecipe:
    """What is supervised at each state.

    Attributes:
        support: ``student`` S_p (the student's k most probable tokens), ``teacher`` S_q, ``overlap`` S_p ∩
        S_q,
            ``non_overlap`` S_p △ S_q, ``union`` S_p ∪ S_q, ``full`` (the whole vocabulary), or ``sampled``
            (the response token alone).
        k: the size of the top sets; without effect for ``full`` and ``sampled``.
        renormalise: whether both distributions are renormalised on the support (Eq. 5) or the true
        probabilities
            are used; without effect for ``full`` and ``sampled``.
    """

    support: Support = "student"
    k: int = 16
    renormalise: bool = True


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

    On a support S: Σ_{v∈S} p̄(v) (log p̄(v) − log q̄(v)), with p̄ and q̄ renormalised on S or the true
    probabilities; 0 where S is empty. For ``sampled``, whose value is log p(ŷ) − log q(ŷ) (Eq. 3), the
    gradient is the score-function estimate (log p(ŷ) − log q(ŷ)) ∇ log p(ŷ), an unbiased one of ∇KL(p ‖ q).

    Args:
        student_logits, teacher_logits: [..., V].
        token_ids: [...] the sampled tokens.
    """
    teacher_logits = teacher_logits.detach()
    log_p = student_logits.log_softmax(dim=-1)
    log_q = teacher_logits.log_softmax(dim=-1)
    if recipe.support == "sampled":
        index = token_ids.unsqueeze(-1)
        chosen = log_p.gather(-1, index).squeeze(-1)
        difference = (chosen - log_q.gather(-1, index).squeeze(-1)).detach()
        return difference + difference * (chosen - chosen.detach())
    mask = support_mask(student_logits.detach(), teacher_logits, recipe)
    if recipe.renormalise:
        # A finite floor instead of -inf: an empty support then gives a finite row, which the product masks to
        # 0.
        floor = torch.finfo(log_p.dtype).min / 4
        log_p = log_p.masked_fill(~mask, floor).log_softmax(dim=-1)
        log_q = log_q.masked_fill(~mask, floor).log_softmax(dim=-1)
    terms = torch.where(mask, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum(dim=-1)


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
