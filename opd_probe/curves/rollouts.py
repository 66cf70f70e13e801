"""Quantities with one value per rollout: length, truncation, correctness, sequence mean reward."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.auroc import weighted_auroc
from opd_probe.curves.bootstrap import Floats, Ints, Resampling, Statistic, Sums, gather, intervals, statistic_intervals
from opd_probe.metrics.context import correctness
from opd_probe.trace import Trace

ROLLOUT_QUANTITIES = ("sequence_mean_reward", "response_length", "truncation_rate", "accuracy")


def rollout_values(trace: Trace, mean_reward: Floats) -> Floats:
    """[n_rollouts, 4] in the order of :data:`ROLLOUT_QUANTITIES`; NaN where unknown.

    Args:
        mean_reward: [n_rollouts], the mean of ``sampled_reward`` over the states of each rollout.
    """
    table = trace.rollouts
    length = np.asarray(table.column("response_length").to_numpy(zero_copy_only=False), dtype=np.float64)
    reasons = table.column("finish_reason").to_pylist()
    truncated = np.array([np.nan if reason is None else float(reason == "length") for reason in reasons])
    return np.stack([mean_reward, length, truncated, correctness(trace)], axis=1)


def summarise_rollouts(
    values: Floats, used: NDArray[np.bool_], codes: Ints, n_clusters: int, resampling: Resampling
) -> dict[str, float]:
    """Means over rollouts that have states, with intervals over prompts, and the AUROC of the mean reward."""
    values, codes = values[used], codes[used]
    defined = ~np.isnan(values)
    mean, lo, hi = intervals(rollout_sums(values, codes, n_clusters), resampling)
    row: dict[str, float] = {}
    for index, name in enumerate(ROLLOUT_QUANTITIES):
        row |= {name: mean[index], f"{name}_lo": lo[index], f"{name}_hi": hi[index]}
        row[f"{name}_n"] = int(defined[:, index].sum())
    statistic, clusters, known = auroc_statistic(values[:, 0], values[:, 3], codes)
    area, lo, hi = statistic_intervals(statistic, clusters, n_clusters, resampling)
    row |= {"reward_auroc": float(area[0]), "reward_auroc_lo": float(lo[0]), "reward_auroc_hi": float(hi[0])}
    return row | {"reward_auroc_n": known}


def rollout_sums(values: Floats, codes: Ints, n_clusters: int) -> Sums:
    """Sums of rollout quantities [r, m] over clusters; NaN is left out."""
    finite = np.where(np.isfinite(values), values, 0.0)
    arrays = (finite, ~np.isnan(values), values == np.inf, values == -np.inf)
    return Sums(*(gather(array, codes, n_clusters) for array in arrays))


def auroc_statistic(reward: Floats, correct: Floats, codes: Ints) -> tuple[Statistic, Ints, int]:
    """The AUROC of the mean reward, to be recomputed on resampled clusters.

    Args:
        reward, correct: [r], NaN where unknown. codes: [r], the cluster of each rollout; −1 leaves it out.

    Returns:
        The statistic (weights of clusters [b, c] in, [b, 1] out; NaN with one class only), the number of clusters in
        which it is defined, [1], and the number of rollouts that count.
    """
    known = (codes >= 0) & ~np.isnan(reward) & ~np.isnan(correct)
    scores, positive, where = reward[known], correct[known] > 0, codes[known]

    def statistic(weights: Floats) -> Floats:
        if not len(scores):
            return np.full((len(weights), 1), np.nan)
        return weighted_auroc(scores, positive, weights[:, where])[:, None]

    return statistic, np.array([len(np.unique(where))]), int(known.sum())
