"""Statistics of one model's next-token distributions, for a replay whose other model is not at hand.

The numbers are those of :mod:`opd_probe.stats.pair` for the student.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_probe.stats.pair import Side, row_maximum, tile_rows
from opd_probe.stats.topk import block_maxima, top_list


@dataclass(frozen=True, slots=True)
class SingleStatistics:
    """What a trace stores of one model at T states; ids are indices into the logits' last axis. float32, in nats.

    Attributes:
        top_ids, top_logprobs: [T, K], its most probable ids in rank order; −1 and −inf at the end of a list with fewer
            than K ids of probability above 0.
        logprobs_at: [T, m], at the ids that were asked for; NaN where there was none.
        logprob: [T], of the sampled token; NaN where it is outside.
        entropy: [T].
        log_partition: [T].
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
    maxima, moments = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=1).double()
    one = Side(logits, row_maximum(maxima, side), 1.0)
    ids = top_list(logits, k, maxima)
    odd = ~torch.isfinite(moments).all(0)
    if bool(odd.any()):  # 0 log 0 = 0
        rows = torch.nonzero(odd).flatten()
        a = one.shifted(rows).double()
        p = a.exp()
        moments[:, rows] = torch.stack([p.sum(-1), torch.where(p > 0, p * a, 0.0).sum(-1)])
    one.log_z = moments[0].log()

    def logprobs(wanted: Tensor) -> Tensor:
        return one.logprobs(wanted).masked_fill_(wanted < 0, torch.nan)

    return SingleStatistics(
        top_ids=ids,
        top_logprobs=one.logprobs(ids),
        logprobs_at=logprobs(at),
        logprob=logprobs(token_ids.unsqueeze(1)).squeeze(1),
        entropy=(one.log_z - moments[1] / moments[0]).float(),
        log_partition=one.log_partition(),
    )


def _reduce(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Block maxima [T, ceil(V / 64)], and Σ e^a and Σ e^a a with a the logits below their row's maximum, [2, T]."""
    maxima = block_maxima(logits)
    a = logits - maxima.amax(-1, keepdim=True)
    p = a.exp()
    return maxima, torch.stack([p.sum(-1), (p * a).sum(-1)])
