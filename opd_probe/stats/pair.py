"""Statistics of pairs of next-token distributions, from their logits.

Notation as in the paper: p is the student's distribution, q the teacher's; all quantities are in nats. With
a = s - max s, b = t - max t and d = a - b, one pass accumulates the sums of e^a, e^b, a e^a, b e^b, d e^a and
d e^b; entropies, log-partition functions and both divergences follow. d itself is accumulated because entropy
minus cross-entropy cancels: it loses divergences below 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opd_probe.errors import LogitError
from opd_probe.stats.topk import block_maxima, top_list

_SMALL = 1e-2
"""Divergences below this are computed again by the form without cancellation, where rounding could show."""


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """What a trace stores of T states; ids are indices into the logits' last axis.

    Shapes are [T] or [T, K]. Log-probabilities, entropies and divergences are float32, in nats. A top list with fewer
    than K ids of probability above 0 ends with ids of −1, where both log-probabilities are −inf.
    ``student_logprob`` and ``teacher_logprob`` are NaN where ``token_ids`` was negative.
    """

    student_top_ids: Tensor
    student_top_logprobs: Tensor
    teacher_logprobs_at_student_top: Tensor
    teacher_top_ids: Tensor
    teacher_top_logprobs: Tensor
    student_logprobs_at_teacher_top: Tensor
    student_logprob: Tensor
    teacher_logprob: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    reverse_kl: Tensor
    forward_kl: Tensor
    jsd: Tensor | None
    student_log_partition: Tensor
    teacher_log_partition: Tensor

    def names(self) -> tuple[str, ...]:
        """The names of the statistics that are there."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


Reduction = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""(student logits, teacher logits, temperature) -> block maxima of both, and moments; see :func:`reduce_pair`."""


def pair_statistics(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    jsd: bool = False,
    reduction: Reduction | None = None,
) -> PairStatistics:
    """Statistics of T pairs of distributions over the same V ids.

    Top-k ids come from the logits before division by the temperature (division can make ties). Logits of -inf
    are probability 0: 0 log 0 counts 0, and p > 0 where q = 0 makes ``reverse_kl`` +inf.

    Args:
        student_logits, teacher_logits: float32 [T, V].
        token_ids: int64 [T]; -1 for a token outside the V ids.
        k: depth of the top lists, 1 <= k <= V.
        temperature: both distributions are softmax(logits / temperature).
        jsd: also the Jensen-Shannon divergence.
        reduction: how the passes over whole rows are done; None: :func:`reduce_in_tiles`.

    Raises:
        LogitError: a logit is NaN or +inf, or a state has no finite logit; ``row`` says which state.
    """
    student_maxima, teacher_maxima, moments = (reduction or reduce_in_tiles)(
        student_logits, teacher_logits, temperature
    )
    student = Side(student_logits, row_maximum(student_maxima, "student"), temperature)
    teacher = Side(teacher_logits, row_maximum(teacher_maxima, "teacher"), temperature)
    student_ids = top_list(student_logits, k, student_maxima)
    teacher_ids = top_list(teacher_logits, k, teacher_maxima)
    odd = ~torch.isfinite(moments).all(0)
    if bool(odd.any()):
        rows = torch.nonzero(odd).flatten()
        moments[:, rows] = _masked_moments(student.shifted(rows), teacher.shifted(rows))
    moments[2:] /= moments[[0, 1, 0, 1]]
    student.log_z, teacher.log_z = moments[0].log(), moments[1].log()
    reverse = moments[4] - student.log_z + teacher.log_z
    forward = -moments[5] - teacher.log_z + student.log_z
    _refine_small(student, teacher, reverse, forward, odd)
    sampled, outside = token_ids.unsqueeze(1), token_ids < 0
    return PairStatistics(
        student_top_ids=student_ids,
        student_top_logprobs=student.logprobs(student_ids),
        teacher_logprobs_at_student_top=teacher.logprobs(student_ids),
        teacher_top_ids=teacher_ids,
        teacher_top_logprobs=teacher.logprobs(teacher_ids),
        student_logprobs_at_teacher_top=student.logprobs(teacher_ids),
        student_logprob=student.logprobs(sampled).squeeze(1).masked_fill(outside, torch.nan),
        teacher_logprob=teacher.logprobs(sampled).squeeze(1).masked_fill(outside, torch.nan),
        student_entropy=(student.log_z - moments[2]).float(),
        teacher_entropy=(teacher.log_z - moments[3]).float(),
        reverse_kl=reverse.float(),
        forward_kl=forward.float(),
        jsd=_jensen_shannon(student, teacher).float() if jsd else None,
        student_log_partition=student.log_partition(),
        teacher_log_partition=teacher.log_partition(),
    )


class Side:
    """The logits of one model at T states, with the maximum and, once known, log sum exp of what lies below it."""

    log_z: Tensor
    """float64 [T]: log Σ e^a, a = (logit − maximum) / temperature."""

    def __init__(self, logits: Tensor, maximum: Tensor, temperature: float) -> None:
        self.logits, self.maximum, self.temperature = logits, maximum, temperature

    def shifted(self, rows: Tensor) -> Tensor:
        """a = (logit − maximum) / temperature at some states, float32 [r, V]."""
        a = self.logits[rows] - self.maximum[rows]
        return a if self.temperature == 1.0 else a / self.temperature

    def logprobs(self, ids: Tensor) -> Tensor:
        """Log-probabilities of ids [T, m], float32 [T, m]; −inf in place of an id (−1)."""
        a = torch.gather(self.logits, 1, ids.clamp(min=0)) - self.maximum
        if self.temperature != 1.0:
            a = a / self.temperature
        return (a.double() - self.log_z.unsqueeze(1)).float().masked_fill_(ids < 0, -torch.inf)

    def log_partition(self) -> Tensor:
        """log Σ exp(logit / temperature), float32 [T]."""
        return (self.log_z + self.maximum.squeeze(1).double() / self.temperature).float()


def reduce_pair(
    student: Tensor, teacher: Tensor, temperature: float, sums: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything that needs whole rows, as plain tensor code: the one definition of the passes over the logits.

    Args:
        student, teacher: float32 [T, V].
        sums: the type that sums are accumulated in. torch's own sums are pairwise and good in float32; those that a
            compiler makes run naively along the row, which costs four digits at V = 150,000, and want float64.

    Returns:
        Block maxima of both ([T, ceil(V / 64)] each), and moments [6, T]: Σ e^a, Σ e^b, Σ e^a a, Σ e^b b,
        Σ e^a (a − b), Σ e^b (a − b), with a and b the logits below their row's maximum, over the temperature.
    """
    student_maxima, teacher_maxima = block_maxima(student), block_maxima(teacher)
    a = student - student_maxima.amax(-1, keepdim=True)
    b = teacher - teacher_maxima.amax(-1, keepdim=True)
    if temperature != 1.0:
        a, b = a / temperature, b / temperature
    p, q, d = a.exp(), b.exp(), a - b
    moments = torch.stack([x.sum(-1, dtype=sums) for x in (p, q, p * a, q * b, p * d, q * d)])
    return student_maxima, teacher_maxima, moments


TILE_VALUES = {"cpu": 320_000, "cuda": 32_000_000}
"""Values per tensor of a tile, by device: two rows of 150,000 ids stay in the caches of a CPU; a GPU wants enough of
them to be busy, and few enough that a pass's intermediates stay small beside the logits."""


def tile_rows(logits: Tensor) -> int:
    """Rows of [T, V] logits that a pass takes at a time."""
    return max(1, TILE_VALUES.get(logits.device.type, TILE_VALUES["cpu"]) // logits.shape[1])


def reduce_in_tiles(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reduce_pair` with moments in float64, a few rows at a time.

    A tile's intermediates stay in the caches, and are small enough for the allocator to hand out the same memory again.
    """
    tile = tile_rows(student)
    pieces = zip(student.split(tile), teacher.split(tile), strict=True)
    parts = [reduce_pair(s, t, temperature) for s, t in pieces]
    student_maxima, teacher_maxima, moments = zip(*parts, strict=True)
    return torch.cat(student_maxima), torch.cat(teacher_maxima), torch.cat(moments, dim=1).double()


def row_maximum(maxima: Tensor, side: str) -> Tensor:
    """The maximum of each row from its block maxima, [T, 1].

    Raises:
        LogitError: it is NaN or infinite.
    """
    top = maxima.amax(-1, keepdim=True)
    bad = ~torch.isfinite(top).squeeze(1)
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0, 0])
        what = "NaN" if torch.isnan(top[row]) else "+inf" if top[row] > 0 else "-inf everywhere"
        raise LogitError(f"the {side}'s logits are {what} at a state", row)
    return top


def _masked_moments(a: Tensor, b: Tensor) -> Tensor:
    """The same moments where logits of -inf occur, in float64 with the conventions for zeros."""
    a, b = a.double(), b.double()
    p, q = a.exp(), b.exp()
    on_p, on_q = torch.isfinite(a), torch.isfinite(b)
    za, zb = p.sum(-1), q.sum(-1)

    def total(weights: Tensor, values: Tensor, on: Tensor) -> Tensor:
        return torch.where(on, weights * torch.where(on, values, 0.0), 0.0).sum(-1)

    both = on_p & on_q
    reverse = total(p, a - b, both).masked_fill((on_p & ~on_q).any(-1), torch.inf)
    forward = total(q, a - b, both).masked_fill((on_q & ~on_p).any(-1), -torch.inf)
    return torch.stack([za, zb, total(p, a, on_p), total(q, b, on_q), reverse, forward])


def _refine_small(student: Side, teacher: Side, reverse: Tensor, forward: Tensor, odd: Tensor) -> None:
    """Recompute small divergences in place, as KL(p || q) = sum p (e^-x - 1 + x) with x = log p - log q.

    Every term is non-negative and of second order in x, so that the rounding of the partition functions, which
    is all that a divergence of 1e-6 would otherwise consist of, enters only squared. That rounding is about
    1e-7 of the mass outside the most probable tokens; rows where it cannot reach the fourth digit stay.
    """
    shift = student.log_z - teacher.log_z
    spread = 1e-7 * ((1.0 - (-student.log_z).exp()) + (1.0 - (-teacher.log_z).exp()))
    smaller = torch.minimum(reverse, forward)
    wanted = (smaller < _SMALL) & (smaller.abs() < 1e4 * spread) & (shift.isfinite()) & ~odd
    # Equal logits give exactly 0 already.
    wanted &= (reverse != 0) | (forward != 0)
    for rows in torch.nonzero(wanted).flatten().split(tile_rows(student.logits)):
        a, b = student.shifted(rows), teacher.shifted(rows)
        x = (a - b) - shift[rows].float().unsqueeze(1)
        p = torch.exp(a - student.log_z[rows].float().unsqueeze(1))
        q = torch.exp(b - teacher.log_z[rows].float().unsqueeze(1))
        # Where x is large there is nothing to cancel, and p may have underflown while q = p e^-x has not.
        near = x.abs() < 1.0
        reverse[rows] = torch.where(near, p * (torch.expm1(-x) + x), q - p + p * x).sum(-1).double()
        forward[rows] = torch.where(near, q * (torch.expm1(x) - x), p - q - q * x).sum(-1).double()


def _jensen_shannon(student: Side, teacher: Side) -> Tensor:
    """JSD = 1/2 sum m ((1 + u) log(1 + u) + (1 - u) log(1 - u)), m = (p + q) / 2, u = (p - q) / (p + q).

    u = tanh(x / 2) with x = log p - log q; every term is non-negative, so small values keep their digits.
    """
    n = len(student.logits)
    result = torch.empty(n, dtype=torch.float64, device=student.logits.device)
    for rows in torch.arange(n, device=student.logits.device).split(tile_rows(student.logits)):
        log_p = student.shifted(rows) - student.log_z[rows].float().unsqueeze(1)
        log_q = teacher.shifted(rows) - teacher.log_z[rows].float().unsqueeze(1)
        x = log_p - log_q
        u = torch.tanh(x.nan_to_num_(nan=0.0) * 0.5)  # -inf on both sides: no mass, any u will do
        m = (log_p.exp() + log_q.exp()) * 0.5
        terms = torch.special.xlog1py(1 + u, u) + torch.special.xlog1py(1 - u, -u)
        result[rows] = 0.5 * (m * terms).sum(-1).double()
    return result.clamp_(max=math.log(2.0))
