"""Statistics of pairs of next-token distributions, from their logits.

Notation as in the paper: p is the student's distribution, q the teacher's; all quantities are in nats. With
a = s - max s, b = t - max t and d = a - b, one pass accumulates the sums of e^a, e^b, a e^a, b e^b, d e^a and
d e^b; entropies, log-partition functions and both divergences follow. d itself is accumulated because entropy
minus cross-entropy cancels.

Logits are float32 and everything made of them is float64. Where one token holds all but 1e-7 of the mass, all that
these statistics tell is in the rest: a float32 sum loses it beside the 1, a float64 sum keeps 8 digits of it, and
below that the rest is summed apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opd_probe.errors import LogitError
from opd_probe.stats.topk import block_maxima, top_list

_REST_APART = 1e-7
"""Mass below the maximum, in multiples of the maximum's, up to which it is summed apart: sums that run along a row one
vector after another, as compiled ones do, are good to 1e-14 beside a 1."""


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """What a trace stores of T states; ids are indices into the logits' last axis.

    Shapes are [T] or [T, K]. Log-probabilities, entropies and divergences are float32, in nats: rounded once, from
    float64. Log-partition functions are float64. A top list with fewer than K ids of probability above 0 ends with
    ids of −1, where both log-probabilities are −inf.
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
    student = Side("student", student_logits, student_maxima, k, temperature)
    teacher = Side("teacher", teacher_logits, teacher_maxima, k, temperature)
    odd = torch.nonzero(~torch.isfinite(moments).all(0)).flatten()
    for rows in odd.split(tile_rows(student_logits)):
        moments[:, rows] = _masked_moments(student.shifted(rows), teacher.shifted(rows))
    student.set_mass(moments[0])
    teacher.set_mass(moments[1])
    moments[2:] /= moments[[0, 1, 0, 1]]
    shift = student.log_z - teacher.log_z
    reverse, forward = _not_negative(moments[4] - shift), _not_negative(shift - moments[5])
    sampled, outside = token_ids.unsqueeze(1), token_ids < 0
    return PairStatistics(
        student_top_ids=student.top_ids,
        student_top_logprobs=student.logprobs(student.top_ids),
        teacher_logprobs_at_student_top=teacher.logprobs(student.top_ids),
        teacher_top_ids=teacher.top_ids,
        teacher_top_logprobs=teacher.logprobs(teacher.top_ids),
        student_logprobs_at_teacher_top=student.logprobs(teacher.top_ids),
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
    """The logits of one model at T states, with what they tell by themselves.

    Args:
        name: whose they are, for the message of an error.
        logits: float32 [T, V].
        maxima: their block maxima.
        k: depth of the top list.
        temperature: as for :func:`pair_statistics`.

    Raises:
        LogitError: see :func:`row_maximum`.
    """

    maximum: Tensor
    """float32 [T, 1]."""
    top_ids: Tensor
    """int64 [T, k]; −1 where no id of probability above 0 is left."""
    log_z: Tensor
    """float64 [T]: log Σ e^a, a = (logit − maximum) / temperature; once :meth:`set_mass` was called."""

    def __init__(self, name: str, logits: Tensor, maxima: Tensor, k: int, temperature: float) -> None:
        self.logits, self.temperature = logits, temperature
        self.maximum = row_maximum(maxima, name)
        self.top_ids = top_list(logits, k, maxima)

    def set_mass(self, mass: Tensor) -> None:
        """Take Σ e^a, float64 [T], for the partition function, and look again at what little lies beside a 1."""
        rest = mass - 1.0
        for rows in torch.nonzero(rest < _REST_APART).flatten().split(tile_rows(self.logits)):
            a = self.shifted(rows)
            rest[rows] = torch.where(a < 0, a.exp(), 0.0).sum(-1)
        self.log_z = torch.log1p(rest)

    def shifted(self, rows: Tensor) -> Tensor:
        """a = (logit − maximum) / temperature at some states, float64 [r, V]."""
        return shifted(self.logits[rows], self.maximum[rows], self.temperature)

    def logprobs(self, ids: Tensor) -> Tensor:
        """Log-probabilities of ids [T, m], float32 [T, m]; −inf in place of an id (−1)."""
        a = shifted(torch.gather(self.logits, 1, ids.clamp(min=0)), self.maximum, self.temperature)
        return (a - self.log_z.unsqueeze(1)).float().masked_fill_(ids < 0, -torch.inf)

    def log_partition(self) -> Tensor:
        """log Σ exp(logit / temperature), float64 [T]."""
        return self.log_z + self.maximum.squeeze(1).double() / self.temperature


def shifted(logits: Tensor, maximum: Tensor, temperature: float, room: Tensor | None = None) -> Tensor:
    """a = (logit − maximum) / temperature in float64, [T, m], of float32 logits [T, m] and maxima [T, 1].

    Args:
        room: float64 [T, m], where a goes; None: into new memory.
    """
    a = logits.double() if room is None else room.copy_(logits)
    a = a.sub_(maximum.double())
    return a if temperature == 1.0 else a.div_(temperature)


Exp = Callable[[Tensor], Tensor]
"""How e^x is had of x ≤ 0, float64."""

Room = Sequence[Tensor]
"""float64 tensors [T, V] for what a pass computes on its way; new memory costs a page fault for every 4 KB."""


def reduce_one(
    logits: Tensor, temperature: float, exp: Exp = torch.exp, room: Room = ()
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The part of :func:`reduce_pair` that looks at one model: block maxima, a, e^a, and [Σ e^a, Σ e^a a]."""
    maxima = block_maxima(logits)
    a = shifted(logits, maxima.amax(-1, keepdim=True), temperature, room[0] if room else None)
    p = torch.exp(a, out=room[1]) if room else exp(a)
    return maxima, a, p, [p.sum(-1), weighted_sum(p, a)]


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Σ weights · values along rows, [T, V] and [T, V] -> [T]."""
    if weights.device.type == "cpu":
        total: Tensor = torch.linalg.vecdot(weights, values)  # without the product in memory
        return total
    return (weights * values).sum(-1)  # a batch of dot products would leave a GPU to one block of threads each


def reduce_pair(
    student: Tensor, teacher: Tensor, temperature: float, exp: Exp = torch.exp, room: Room = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything that needs whole rows, as plain tensor code: the one definition of the passes over the logits.

    Args:
        student, teacher: float32 [T, V].
        room: four tensors, or none.

    Returns:
        Block maxima of both ([T, ceil(V / 64)] each), and moments, float64 [6, T]: Σ e^a, Σ e^b, Σ e^a a, Σ e^b b,
        Σ e^a (a − b), Σ e^b (a − b), with a and b the logits below their row's maximum, over the temperature.
    """
    student_maxima, a, p, of_student = reduce_one(student, temperature, exp, room[:2])
    teacher_maxima, b, q, of_teacher = reduce_one(teacher, temperature, exp, room[2:])
    d = a.sub_(b)
    moments = [of_student[0], of_teacher[0], of_student[1], of_teacher[1], weighted_sum(p, d), weighted_sum(q, d)]
    return student_maxima, teacher_maxima, torch.stack(moments)


TILE_VALUES = {"cpu": 160_000, "cuda": 16_000_000}
"""Values per tensor of a tile, by device: a row of 150,000 ids stays in the caches of a CPU; a GPU wants enough of
them to be busy, and few enough that a pass's intermediates stay small beside the logits."""


def tile_rows(logits: Tensor) -> int:
    """Rows of [T, V] logits that a pass takes at a time."""
    return max(1, TILE_VALUES.get(logits.device.type, TILE_VALUES["cpu"]) // logits.shape[1])


def reduce_in_tiles(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reduce_pair`, a few rows at a time.

    A tile's intermediates stay in the caches, and are small enough for the allocator to hand out the same memory again.
    """
    tile = tile_rows(student)
    pieces = zip(student.split(tile), teacher.split(tile), strict=True)
    room = torch.empty((4, min(tile, len(student)), student.shape[1]), dtype=torch.float64, device=student.device)
    parts = [reduce_pair(s, t, temperature, room=list(room[:, : len(s)])) for s, t in pieces]
    student_maxima, teacher_maxima, moments = zip(*parts, strict=True)
    return torch.cat(student_maxima), torch.cat(teacher_maxima), torch.cat(moments, dim=1)


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
    """The same moments where logits of -inf occur, with the conventions for zeros."""
    p, q = a.exp(), b.exp()
    on_p, on_q = torch.isfinite(a), torch.isfinite(b)

    def total(weights: Tensor, values: Tensor, on: Tensor) -> Tensor:
        return torch.where(on, weights * torch.where(on, values, 0.0), 0.0).sum(-1)

    both = on_p & on_q
    reverse = total(p, a - b, both).masked_fill((on_p & ~on_q).any(-1), torch.inf)
    forward = total(q, a - b, both).masked_fill((on_q & ~on_p).any(-1), -torch.inf)
    return torch.stack([p.sum(-1), q.sum(-1), total(p, a, on_p), total(q, b, on_q), reverse, forward])


def _not_negative(divergence: Tensor) -> Tensor:
    """A divergence, [T]: what rounding left below 0, at 1e-16 of the mass below the maximum, is 0."""
    return divergence.clamp(min=0.0) + 0.0  # -0.0 + 0.0 is 0.0


def _jensen_shannon(student: Side, teacher: Side) -> Tensor:
    """JSD = 1/2 sum (p log (p / m) + q log (q / m)), m = (p + q) / 2, in float64 [T].

    With x = log p - log q the larger of p / m and q / m is 1 / (1 + expm1(-|x|) / 2), and the smaller one e^-|x| times
    that, so that equal probabilities add exactly 0.
    """
    n = len(student.logits)
    result = torch.empty(n, dtype=torch.float64, device=student.logits.device)
    for rows in torch.arange(n, device=student.logits.device).split(tile_rows(student.logits)):
        log_p = student.shifted(rows) - student.log_z[rows].unsqueeze(1)
        log_q = teacher.shifted(rows) - teacher.log_z[rows].unsqueeze(1)
        # -inf on both sides: no mass, any x will do. Beyond 1000 the smaller one is 0 beside any float64.
        x = (log_p - log_q).nan_to_num_(nan=0.0).abs_().clamp_(max=1e3)
        p, q = log_p.exp_(), log_q.exp_()
        larger = torch.log1p(torch.expm1(-x) * 0.5)
        terms = torch.minimum(p, q) * x + (p + q) * larger
        result[rows] = -0.5 * terms.sum(-1)
    return _not_negative(result).clamp_(max=math.log(2.0))
