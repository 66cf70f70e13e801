"""Mass concentration: what the k most probable tokens hold, for every k up to the K of the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.intervals import Floats, ends, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.metrics import METRICS
from opd_probe.metrics.overlap import STUDENT, TEACHER, overlap_advantage
from opd_probe.metrics.states import BLOCK_STATES, keep_freed_memory
from opd_probe.metrics.view import TopView, comparable_ids, listed, running_sums, shared_ids
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

LOGPROBS = (*STUDENT, *TEACHER)

SMALL_MASS = 1e-100
"""Below it sums of probabilities lose terms to underflow, and logarithms of ratios of them their meaning."""


def mass_curve(
    trace: Trace,
    *,
    average: str = "token",
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Cumulative and overlap mass of both models for every k = 1 … K of a trace.

    Args:
        average, seed, resamples: as for :func:`opd_probe.summarize`.

    Returns:
        One row per k: ``k`` and, for ``student_topk_mass``, ``teacher_topk_mass``, ``student_overlap_mass``,
        ``teacher_overlap_mass``, ``overlap_ratio`` and ``overlap_advantage``, the mean over states with ``_lo``,
        ``_hi`` and ``_n``: the values of :func:`opd_probe.summarize` at each k, from one pass over the trace; with
        ``n_empty_overlap``, ``n_single_overlap`` and ``n_short_lists`` at each k as there.

    Raises:
        InputError: an unknown average.
    """
    import pandas as pd

    check_average(average)
    depth = trace.K
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(QUANTITIES) * depth)
    counts = dict.fromkeys(("n_empty_overlap", "n_single_overlap", "n_short_lists"), np.zeros(depth, dtype=np.int64))
    keep_freed_memory()
    for block in trace.blocks(TOP_COLUMNS, BLOCK_STATES):
        values = by_rank(block)
        sums.add(block["rollout"], *values)
        shared = np.rint(values[QUANTITIES.index("overlap_ratio")] * np.arange(1, depth + 1))
        whole = listed(block, "student", depth) & listed(block, "teacher", depth)
        for name, found in zip(counts, (shared == 0, shared == 1, ~whole), strict=True):
            counts[name] = counts[name] + found.sum(0)
    codes, n_clusters = clusters_of(trace)
    if resamples:
        warn_few_prompts(prompts_with_states(trace))
    ranges = [METRICS[name].range for name in QUANTITIES for _ in range(depth)]
    mean, lo, hi = ends(sums.clustered(codes, n_clusters, average)[0].estimate(ranges), level_of(trace, resamples))
    defined = sums.count[:, 0].sum(0)
    table: dict[str, Any] = {"k": np.arange(1, depth + 1)}
    for index, name in enumerate(QUANTITIES):
        cells = slice(index * depth, (index + 1) * depth)
        table |= {name: mean[cells], f"{name}_lo": lo[cells], f"{name}_hi": hi[cells]}
        table[f"{name}_n"] = defined[cells].astype(np.int64)
    return pd.DataFrame(table | counts)


def by_rank(block: Mapping[str, NDArray[Any]]) -> tuple[Floats, ...]:
    """Each of :data:`QUANTITIES` of a block of states for k = 1 … K, [n, K] each.

    A token at rank i of the student and j of the teacher is in the overlap from k = max(i, j) on, so that every
    sum over the overlap is a running sum: over the student's tokens that the teacher ranks before them or alike, and
    over the teacher's tokens that the student ranks before them. The advantage is −KL(p̄ ‖ q̄) / |O|, with
    KL(p̄ ‖ q̄) = Σ p (log p − log q) / P − log(P / Q), and P, Q the masses of the overlap.
    """
    known = all(np.isfinite(block[name]).all() for name in LOGPROBS)
    own_p, own_q, other_q, other_p = (np.asarray(block[name], dtype=np.float64, order="F") for name in LOGPROBS)
    p, q, q_other, p_other = (np.exp(logs) for logs in (own_p, own_q, other_q, other_p))
    masks = [listed(block, side, block["student_top_ids"].shape[1]) for side in ("student", "teacher")]
    entering = shared_ids(*comparable_ids(block, *masks), entering=True)
    first, second = (mask.astype(np.float64) for mask in entering)

    def running(own: Floats, other: Floats) -> Floats:
        if not known:  # a product would carry NaN and inf to where they do not belong
            return running_sums(np.where(first > 0, own, 0.0) + np.where(second > 0, other, 0.0))
        total = own * first
        total += other * second
        return running_sums(total)

    with np.errstate(invalid="ignore"):
        own_terms, other_terms = p * (own_p - own_q), p_other * (other_p - other_q)
        if not known:  # 0 log 0 = 0
            own_terms, other_terms = np.where(p > 0, own_terms, 0.0), np.where(p_other > 0, other_terms, 0.0)
    size = running_sums(first + second)
    p_overlap, q_overlap = running(p, p_other), running(q, q_other)
    advantage = _advantage(size, p_overlap, q_overlap, running(own_terms, other_terms), block)
    ratio = size / np.arange(1, size.shape[1] + 1)
    ended = (block["teacher_top_ids"] < 0) & masks[1]
    if ended.any():  # what a served teacher's list does not reach
        for values in (p_overlap, q_overlap, ratio, advantage):
            values[ended] = np.nan
    return running_sums(p), running_sums(q_other), p_overlap, q_overlap, ratio, advantage


def _advantage(size: Floats, p: Floats, q: Floats, terms: Floats, block: Mapping[str, NDArray[Any]]) -> Floats:
    """The overlap advantage from sums over the overlap, [n, K]; NaN where it is empty."""
    none = np.maximum(size, 1.0)
    none -= size
    p = p + none  # an empty overlap: 0 / 0 at the end, and no logarithm of 0 on the way
    none += q
    lower = np.minimum(p, none)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        advantage: Floats = np.divide(p, none, out=none)
        np.log(advantage, out=advantage)
        advantage -= np.divide(terms, p, out=p)
        advantage /= size
        advantage *= size != 1.0  # renormalised on one token; the sums would leave their rounding
    if (
        not lower.min() > SMALL_MASS
    ):  # masses that vanish or are unknown: by the definition, which scales before it adds
        rows = ~(lower > SMALL_MASS).all(axis=1)
        few = {name: values[rows] for name, values in block.items()}
        for k in range(1, size.shape[1] + 1):
            advantage[rows, k - 1] = overlap_advantage(TopView(few, k))
    return advantage
