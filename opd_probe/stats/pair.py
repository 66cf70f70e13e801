"""Statistics of pairs of next-token distributions, from their logits.

Notation as in the paper: p is the student's distribution, q the teacher's; all quantities are in nats. With
a = s - max s, b = t - max t and d = a - b, one pass accumulates the sums of e^a, e^b, a e^a, b e^b, d e^a and
d e^b; entropies, log-partition functions and both divergences follow. d itself is accumulated because entropy
minus cross-entropy cancels: it loses divergences below 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opd_probe.errors import LogitError
from opd_probe.stats.topk import block_maxima, exact_topk

_SMALL = 1e-2
"""Divergences below this are computed again by the form without cancellation, where rounding could show."""


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """What a trace stores of T states; ids are indices into the logits' last axis.

    Shapes are [T] or [T, K]. Log-probabilities, entropies and divergences are float32, in nats.
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


def pair_statistics(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    jsd: bool = False,
    scratch: Scratch | None = None,
) -> PairStatistics:
    """Statistics of T pairs of distributions over the same V ids.

    Top-k ids come from the logits before division by the temperature (division can make ties). Logits of -inf
    are probability 0: 0 log 0 counts 0, and p > 0 where q = 0 makes ``reverse_kl`` +inf.

    Args:
        student_logits, teacher_logits: float32 [T, V]. **Overwritten** when ``scratch`` is given.
        token_ids: int64 [T]; -1 for a token outside the V ids.
        k: depth of the top lists, 1 <= k <= V.
        temperature: both distributions are softmax(logits / temperature).
        jsd: also the Jensen-Shannon divergence.
        scratch: buffers to use again from chunk to chunk.

    Raises:
        LogitError: a logit is NaN or +inf, or a state has no finite logit; ``row`` says which state.
    """
    scratch_given = scratch is not None
    scratch = scratch or Scratch()
    student = student_logits if scratch_given else student_logits.clone()
    teacher = teacher_logits if scratch_given else teacher_logits.clone()
    student_maxima, teacher_maxima = block_maxima(student), block_maxima(teacher)
    student_top = _row_maximum(student_maxima, "student")
    teacher_top = _row_maximum(teacher_maxima, "teacher")
    student_ids = exact_topk(student, k, student_maxima)
    teacher_ids = exact_topk(teacher, k, teacher_maxima)

    a, b = student.sub_(student_top), teacher.sub_(teacher_top)
    if temperature != 1.0:
        a.div_(temperature)
        b.div_(temperature)
    moments = _moments(a, b, scratch)
    odd = ~torch.isfinite(moments).all(0)
    if bool(odd.any()):
        rows = torch.nonzero(odd).flatten()
        moments[:, rows] = _masked_moments(a[rows], b[rows])
    log_za, log_zb = moments[0].log(), moments[1].log()
    entropy_p = log_za - moments[2]
    entropy_q = log_zb - moments[3]
    reverse = moments[4] - log_za + log_zb
    forward = -moments[5] - log_zb + log_za
    _refine_small(a, b, log_za - log_zb, log_za, log_zb, reverse, forward, odd)

    def at(values: Tensor, log_z: Tensor, ids: Tensor) -> Tensor:
        return (torch.gather(values, 1, ids).double() - log_z.unsqueeze(1)).float()

    sampled = token_ids.clamp(min=0).unsqueeze(1)
    outside = token_ids < 0
    return PairStatistics(
        student_top_ids=student_ids,
        student_top_logprobs=at(a, log_za, student_ids),
        teacher_logprobs_at_student_top=at(b, log_zb, student_ids),
        teacher_top_ids=teacher_ids,
        teacher_top_logprobs=at(b, log_zb, teacher_ids),
        student_logprobs_at_teacher_top=at(a, log_za, teacher_ids),
        student_logprob=at(a, log_za, sampled).squeeze(1).masked_fill(outside, torch.nan),
        teacher_logprob=at(b, log_zb, sampled).squeeze(1).masked_fill(outside, torch.nan),
        student_entropy=entropy_p.float(),
        teacher_entropy=entropy_q.float(),
        reverse_kl=reverse.float(),
        forward_kl=forward.float(),
        jsd=_jensen_shannon(a, b, log_za, log_zb).float() if jsd else None,
        student_log_partition=(log_za + student_top.squeeze(1).double() / temperature).float(),
        teacher_log_partition=(log_zb + teacher_top.squeeze(1).double() / temperature).float(),
    )


class Scratch:
    """Buffers that live from chunk to chunk: fresh large tensors cost a page fault for every 4 KB."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def like(self, name: str, reference: Tensor) -> Tensor:
        """An uninitialised tensor of the shape, type and device of ``reference``."""
        return self.take(name, (reference.shape[0], reference.shape[1]), reference.dtype, reference.device)

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor; what it held before under this name is gone."""
        held = self._buffers.get(name)
        needed = shape[0] * shape[1]
        if held is None or held.numel() < needed or held.dtype != dtype or held.device != device:
            held = torch.empty(needed, dtype=dtype, device=device)
            self._buffers[name] = held
        return held[:needed].view(shape)


def _row_maximum(maxima: Tensor, side: str) -> Tensor:
    top = maxima.amax(-1, keepdim=True)
    bad = ~torch.isfinite(top).squeeze(1)
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0, 0])
        what = "NaN" if torch.isnan(top[row]) else "+inf" if top[row] > 0 else "-inf everywhere"
        raise LogitError(f"the {side}'s logits are {what} at a state", row)
    return top


def _moments(a: Tensor, b: Tensor, scratch: Scratch) -> Tensor:
    """float64 [6, T]: sum e^a, sum e^b, E_p[a], E_q[b], E_p[a - b], E_q[a - b]."""
    n, width = a.shape
    moments = torch.empty((6, n), dtype=torch.float64, device=a.device)
    # On a CPU a few rows at a time keep the four buffers in its caches: 0.6 instead of 1 ms per 150,000 ids.
    tile = max(1, CACHED_VALUES // width) if a.device.type == "cpu" else n
    for start in range(0, n, tile):
        rows = slice(start, start + tile)
        _tile_moments(a[rows], b[rows], scratch, moments[:, rows])
    moments[2:] /= moments[[0, 1, 0, 1]]
    return moments


CACHED_VALUES = 320_000
"""Values per buffer of a tile on a CPU."""


def _tile_moments(a: Tensor, b: Tensor, scratch: Scratch, out: Tensor) -> None:
    p = torch.exp(a, out=scratch.like("p", a))
    q = torch.exp(b, out=scratch.like("q", b))
    d = torch.sub(a, b, out=scratch.like("d", a))
    product = scratch.like("product", a)
    out[0], out[1] = p.sum(-1), q.sum(-1)
    # A batched matrix product would be as fast, but accumulates naively: 3e-4 of the value at V = 150,000.
    for row, (weights, values) in enumerate(((p, a), (q, b), (p, d), (q, d)), start=2):
        out[row] = torch.mul(weights, values, out=product).sum(-1)


def _masked_moments(a: Tensor, b: Tensor) -> Tensor:
    """The same moments where logits of -inf occur, in float64 with the conventions for zeros."""
    a, b = a.double(), b.double()
    p, q = a.exp(), b.exp()
    on_p, on_q = torch.isfinite(a), torch.isfinite(b)
    za, zb = p.sum(-1), q.sum(-1)

    def mean(weights: Tensor, values: Tensor, on: Tensor, z: Tensor) -> Tensor:
        return torch.where(on, weights * torch.where(on, values, 0.0), 0.0).sum(-1) / z

    both = on_p & on_q
    reverse = mean(p, a - b, both, za).masked_fill((on_p & ~on_q).any(-1), torch.inf)
    forward = mean(q, a - b, both, zb).masked_fill((on_q & ~on_p).any(-1), -torch.inf)
    return torch.stack([za, zb, mean(p, a, on_p, za), mean(q, b, on_q, zb), reverse, forward])


def _refine_small(
    a: Tensor,
    b: Tensor,
    shift: Tensor,
    log_za: Tensor,
    log_zb: Tensor,
    reverse: Tensor,
    forward: Tensor,
    odd: Tensor,
) -> None:
    """Recompute small divergences in place, as KL(p || q) = sum p (e^-x - 1 + x) with x = log p - log q.

    Every term is non-negative and of second order in x, so that the rounding of the partition functions, which
    is all that a divergence of 1e-6 would otherwise consist of, enters only squared. That rounding is about
    1e-7 of the mass outside the most probable tokens; rows where it cannot reach the fourth digit stay.
    """
    spread = 1e-7 * ((1.0 - (-log_za).exp()) + (1.0 - (-log_zb).exp()))
    smaller = torch.minimum(reverse, forward)
    wanted = (smaller < _SMALL) & (smaller.abs() < 1e4 * spread) & (shift.isfinite()) & ~odd
    # Equal logits give exactly 0 already.
    wanted &= (reverse != 0) | (forward != 0)
    for rows in torch.nonzero(wanted).flatten().split(16):
        a_rows, b_rows = a[rows], b[rows]
        x = (a_rows - b_rows) - shift[rows].float().unsqueeze(1)
        p = torch.exp(a_rows - log_za[rows].float().unsqueeze(1))
        q = torch.exp(b_rows - log_zb[rows].float().unsqueeze(1))
        # Where x is large there is nothing to cancel, and p may have underflown while q = p e^-x has not.
        near = x.abs() < 1.0
        reverse[rows] = torch.where(near, p * (torch.expm1(-x) + x), q - p + p * x).sum(-1).double()
        forward[rows] = torch.where(near, q * (torch.expm1(x) - x), p - q - q * x).sum(-1).double()


def _jensen_shannon(a: Tensor, b: Tensor, log_za: Tensor, log_zb: Tensor) -> Tensor:
    """JSD = 1/2 sum m ((1 + u) log(1 + u) + (1 - u) log(1 - u)), m = (p + q) / 2, u = (p - q) / (p + q).

    u = tanh(x / 2) with x = log p - log q; every term is non-negative, so small values keep their digits.
    """
    result = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
    for rows in torch.arange(a.shape[0], device=a.device).split(16):
        log_p = a[rows] - log_za[rows].float().unsqueeze(1)
        log_q = b[rows] - log_zb[rows].float().unsqueeze(1)
        x = log_p - log_q
        u = torch.tanh(x.nan_to_num_(nan=0.0) * 0.5)  # -inf on both sides: no mass, any u will do
        m = (log_p.exp() + log_q.exp()) * 0.5
        terms = torch.special.xlog1py(1 + u, u) + torch.special.xlog1py(1 - u, -u)
        result[rows] = 0.5 * (m * terms).sum(-1).double()
    return result.clamp_(max=math.log(2.0))
