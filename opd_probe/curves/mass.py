"""Mass concentration: what the k most probable tokens hold, for every k up to the K of the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of
from opd_probe.curves.bootstrap import RESAMPLES, Floats, Resampling, intervals, warn_few_prompts
from opd_probe.metrics.view import match_ranks
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = (
    "student_topk_mass",
    "teacher_topk_mass",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "overlap_ratio",
)
COLUMNS = (
    "student_top_ids",
    "student_top_logprobs",
    "teacher_logprobs_at_student_top",
    "teacher_top_ids",
    "teacher_top_logprobs",
)


def mass_curve(trace: Trace, *, average: str = "token", seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Cumulative and overlap mass of both models for every k = 1 … K of a trace.

    Returns:
        One row per k: ``k`` and, for ``student_topk_mass``, ``teacher_topk_mass``, ``student_overlap_mass``,
        ``teacher_overlap_mass`` and ``overlap_ratio``, the mean over states with ``_lo``, ``_hi`` and ``_n``.

    Raises:
        InputError: an unknown average.
    """
    import pandas as pd

    check_average(average)
    depth = trace.K
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(QUANTITIES) * depth)
    for block in trace.blocks(COLUMNS, 8192):
        sums.add(block["rollout"], _by_rank(block, depth))
    codes, n_prompts = clusters_of(trace)
    if resamples:
        warn_few_prompts(n_prompts)
    mean, lo, hi = intervals(sums.clustered(codes, n_prompts, average)[0], Resampling(resamples, seed))
    defined = sums.count[:, 0].sum(0)
    table: dict[str, Any] = {"k": np.arange(1, depth + 1)}
    for index, name in enumerate(QUANTITIES):
        cells = slice(index * depth, (index + 1) * depth)
        table |= {name: mean[cells], f"{name}_lo": lo[cells], f"{name}_hi": hi[cells]}
        table[f"{name}_n"] = defined[cells].astype(np.int64)
    return pd.DataFrame(table)


def _by_rank(block: dict[str, Any], depth: int) -> Floats:
    """[n, 5 K]: each quantity for k = 1 … K, side by side.

    A token at rank i of the student and j of the teacher is in the overlap from k = max(i, j) + 1 on.
    """
    p = np.exp(block["student_top_logprobs"].astype(np.float64))
    q = np.exp(block["teacher_top_logprobs"].astype(np.float64))
    q_on_student = np.exp(block["teacher_logprobs_at_student_top"].astype(np.float64))
    ranks = match_ranks(block["student_top_ids"], block["teacher_top_ids"])
    enters = np.maximum(ranks, np.arange(depth))
    rows, columns = np.nonzero(enters < depth)
    at = rows, enters[rows, columns]

    def entering(values: Floats) -> Floats:
        added = np.zeros((len(p), depth))
        np.add.at(added, at, values)
        return np.cumsum(added, axis=1)

    shared = entering(np.ones(len(rows))) / np.arange(1, depth + 1)
    return np.concatenate(
        [
            np.cumsum(p, axis=1),
            np.cumsum(q, axis=1),
            entering(p[rows, columns]),
            entering(q_on_student[rows, columns]),
            shared,
        ],
        axis=1,
    )
