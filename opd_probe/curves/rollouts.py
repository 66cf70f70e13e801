"""Quantities with one value per rollout: length, truncation, correctness, sequence mean reward."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.auroc import weighted_auroc
from opd_probe.curves.bootstrap import Floats, Ints, Resampling, Sums, gather, intervals, percentile_interval
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
    reward, correct = values[:, 0], values[:, 3]
    return row | _auroc(reward, correct, codes, n_clusters, resampling)


def rollout_sums(values: Floats, codes: Ints, n_clusters: int) -> Sums:
    """Sums of rollout quantities [r, m] over clusters; NaN is left out."""
    finite = np.where(np.isfinite(values), values, 0.0)
    arrays = (finite, ~np.isnan(values), values == np.inf, values == -np.inf)
    return Sums(*(gather(array, codes, n_clusters) for array in arrays))


def _auroc(reward: Floats, correct: Floats, codes: Ints, n_clusters: int, resampling: Resampling) -> dict[str, float]:
    known = ~np.isnan(reward) & ~np.isnan(correct)
    row = {"reward_auroc": np.nan, "reward_auroc_lo": np.nan, "reward_auroc_hi": np.nan}
    row["reward_auroc_n"] = int(known.sum())
    if not known.any():
        return row
    reward, positive, codes = reward[known], correct[known] > 0, codes[known]
    row["reward_auroc"] = float(weighted_auroc(reward, positive, np.ones((1, len(reward))))[0])
    if len(np.unique(codes)) < 2 or resampling.resamples < 1 or np.isnan(row["reward_auroc"]):
        return row
    drawn = [weighted_auroc(reward, positive, weights[:, codes]) for weights in resampling.weights(n_clusters)]
    lo, hi = percentile_interval(np.concatenate(drawn)[:, None], resampling.level)
    row["reward_auroc_lo"], row["reward_auroc_hi"] = float(lo[0]), float(hi[0])
    return row
