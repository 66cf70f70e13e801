"""Statistics of one model's next-token distributions, for a replay whose other model is not at hand.

The numbers are those of :mod:`opd_probe.stats.pair` for the student.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_probe.stats.pair import Side, reduce_one, tile_rows


@dataclass(frozen=True, slots=True)
class SingleStatistics:
    """What a trace stores of one model at T states; ids are indices into the logits' last axis. float32, in nats.

    Attributes:
        top_ids, top_logprobs: [T, K], its most probable ids in rank order; −1 and −inf at the end of a list with fewer
            than K ids of probability above 0.
        logprobs_at: [T, m], at the ids that were asked for; NaN where there was none.
        logprob: [T], of the sampled token; NaN where it is outside.
        entropy: [T].
        log_partition: float64 [T].
    """

    top_ids: Tensor
    top_logprobs: Tensor
    logprobs_at: Tensor
    logprob: Tensor
    entropy: Tensor
    log_partition: Tensor


def single_statistics(
    logits: Tensor, token_ids: Tensor, at: Tensor, k: int, *, side: str = "student"
) -> SingleStatistics:
    """Statistics of T distributions over V ids.

    Args:
        logits: float32 [T, V].
        token_ids: int64 [T]; -1 for a token outside the V ids.
        at: int64 [T, m], further ids whose log-probabilities are wanted; -1 for none.
        k: depth of the top lists, 1 <= k <= V.
        side: whose logits they are, for the message of an error.

    Raises:
        LogitError: as :func:`opd_probe.stats.pair.pair_statistics`.
    """
    parts = [_reduce(rows) for rows in logits.split(tile_rows(logits))]
    maxima, mass, weighted = (torch.cat(part) for part in zip(*parts, strict=True))
    one = Side(side, logits, maxima, k, 1.0)
    for rows in torch.nonzero(~weighted.isfinite()).flatten().split(tile_rows(logits)):  # 0 log 0 = 0
        a = one.shifted(rows)
        p = a.exp()
        weighted[rows] = torch.where(p > 0, p * a, 0.0).sum(-1)
    one.set_mass(mass)

    def logprobs(wanted: Tensor) -> Tensor:
        return one.logprobs(wanted).masked_fill_(wanted < 0, torch.nan)

    return SingleStatistics(
        top_ids=one.top_ids,
        top_logprobs=one.logprobs(one.top_ids),
        logprobs_at=logprobs(at),
        logprob=logprobs(token_ids.unsqueeze(1)).squeeze(1),
        entropy=(one.log_z - weighted / mass).float(),
        log_partition=one.log_partition(),
    )


def _reduce(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Block maxima [T, ceil(V / 64)], Σ e^a and Σ e^a a, as of :func:`opd_probe.stats.pair.reduce_one`."""
    maxima, _, _, (mass, weighted) = reduce_one(logits, 1.0)
    return maxima, mass, weighted
