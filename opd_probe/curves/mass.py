"""Mass concentration: what the k most probable tokens hold, for every k up to the K of the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES, Floats, Ints, Resampling, intervals, warn_few_prompts
from opd_probe.metrics.view import match_ranks
from opd_probe.trace import Trace
from opd_probe.trace.schema import TOP_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = (
    "student_topk_mass",
    "teacher_topk_mass",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "overlap_ratio",
    "overlap_advantage",
)


def mass_curve(trace: Trace, *, average: str = "token", seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Cumulative and overlap mass of both models for every k = 1 … K of a trace.

    Returns:
        One row per k: ``k`` and, for ``student_topk_mass``, ``teacher_topk_mass``, ``student_overlap_mass``,
        ``teacher_overlap_mass``, ``overlap_ratio`` and ``overlap_advantage``, the mean over states with ``_lo``,
        ``_hi`` and ``_n``: the values of :func:`opd_probe.summarize` at each k, from one pass over the trace.

    Raises:
        InputError: an unknown average.
    """
    import pandas as pd

    check_average(average)
    depth = trace.K
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(QUANTITIES) * depth)
    for block in trace.blocks(TOP_COLUMNS, 8192):
        sums.add(block["rollout"], _by_rank(block, depth))
    codes, n_clusters = clusters_of(trace)
    if resamples:
        warn_few_prompts(prompts_with_states(trace))
    mean, lo, hi = intervals(sums.clustered(codes, n_clusters, average)[0], Resampling(resamples, seed))
    defined = sums.count[:, 0].sum(0)
    table: dict[str, Any] = {"k": np.arange(1, depth + 1)}
    for index, name in enumerate(QUANTITIES):
        cells = slice(index * depth, (index + 1) * depth)
        table |= {name: mean[cells], f"{name}_lo": lo[cells], f"{name}_hi": hi[cells]}
        table[f"{name}_n"] = defined[cells].astype(np.int64)
    return pd.DataFrame(table)


def _by_rank(block: dict[str, Any], depth: int) -> Floats:
    """[n, 6 K]: each quantity for k = 1 … K, side by side.

    A token at rank i of the student and j of the teacher is in the overlap from k = max(i, j) + 1 on, so that every
    sum over the overlap is a running sum: over the student's tokens that the teacher ranked before them or alike, and
    over the teacher's tokens that the student ranked before them. The advantage is −KL(p̄ ‖ q̄) / |O|, with
    KL(p̄ ‖ q̄) = Σ p (log p − log q) / P − log P + log Q, and P, Q the masses of the overlap.
    """
    logs = {name: block[name].astype(np.float64) for name in TOP_COLUMNS if not name.endswith("_ids")}
    own_p, own_q = logs["student_top_logprobs"], logs["teacher_logprobs_at_student_top"]
    other_p, other_q = logs["student_logprobs_at_teacher_top"], logs["teacher_top_logprobs"]
    ranks = match_ranks(block["student_top_ids"], block["teacher_top_ids"])
    place = np.arange(depth)
    first = ranks <= place  # of the student's tokens, those that enter at their own rank
    second = _inverse(ranks) < place  # of the teacher's tokens, those that enter at theirs

    def running(own: Floats, other: Floats) -> Floats:
        total: Floats = np.cumsum(np.where(first, own, 0.0) + np.where(second, other, 0.0), axis=1)
        return total

    p, q = np.exp(own_p), np.exp(own_q)
    p_other, q_other = np.exp(other_p), np.exp(other_q)
    size = running(np.ones_like(p), np.ones_like(p))
    p_overlap, q_overlap = running(p, p_other), running(q, q_other)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(p > 0, p * (own_p - own_q), 0.0), np.where(p_other > 0, p_other * (other_p - other_q), 0.0)
        kl = running(*terms) / p_overlap - np.log(p_overlap) + np.log(q_overlap)
        advantage = np.where(size > 0, 0.0 - kl / size, np.nan)
    advantage[size == 1] = 0.0  # renormalised on one token; the sums above would leave their rounding
    ratio = size / (place + 1)
    return np.concatenate(
        [np.cumsum(p, axis=1), np.cumsum(q_other, axis=1), p_overlap, q_overlap, ratio, advantage], axis=1
    )


def _inverse(ranks: Ints) -> Ints:
    """From each token of one list its rank in the other, the same seen from the other list, [n, K]."""
    depth = ranks.shape[1]
    inverse = np.full((len(ranks), depth + 1), depth, dtype=ranks.dtype)
    np.put_along_axis(inverse, ranks, np.broadcast_to(np.arange(depth), ranks.shape), axis=1)
    return inverse[:, :depth]
