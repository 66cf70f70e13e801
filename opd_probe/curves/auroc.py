"""Area under the ROC curve of all rollouts, and without the rollouts of each prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Floats, Ints

Bools = NDArray[np.bool_]


def below(scores: Floats, counted: Bools, group: Ints) -> Floats:
    """[r], for each rollout how many counted ones of its group have a lower score, and half of those with an equal one.

    Args:
        scores: [r]. counted: bool [r]. group: [r], non-negative.
    """
    if not len(scores):
        return np.zeros(0)
    order = np.lexsort((scores, group))
    scores, counted, group = scores[order], counted[order], group[order]
    new_group = np.concatenate([[True], group[1:] != group[:-1]])
    new = np.flatnonzero(new_group | np.concatenate([[True], scores[1:] != scores[:-1]]))
    tied = np.add.reduceat(counted.astype(np.float64), new)  # one entry per distinct score of a group
    before = np.cumsum(tied) - tied
    first = np.maximum.accumulate(np.where(new_group[new], np.arange(len(new)), 0))
    found = np.empty(len(scores))
    found[order] = np.repeat(before - before[first] + 0.5 * tied, np.diff(np.append(new, len(scores))))
    return found


def left_out_auroc(scores: Floats, positive: Bools, codes: Ints, n_clusters: int) -> tuple[float, Floats]:
    """P(score of a positive > score of a negative) + half of P(equal), of all rollouts and without each cluster.

    Args:
        scores: [r], not NaN. positive: bool [r]. codes: [r], the cluster of each rollout.

    Returns:
        The area, and [n_clusters]; NaN where one class alone is left.
    """

    def per_cluster(values: Floats | Bools, where: Bools) -> Floats:
        summed: Floats = np.bincount(codes[where], values[where].astype(np.float64), n_clusters).astype(np.float64)
        return summed

    negative = ~positive
    everyone, ones = np.zeros_like(codes), np.ones(len(scores))
    won = below(scores, negative, everyone)  # of a positive: the pairs that it wins
    lost = below(-scores, positive, everyone)  # of a negative: the pairs that it loses
    inside = per_cluster(below(scores, negative, codes), positive)
    positives, negatives = per_cluster(ones, positive), per_cluster(ones, negative)
    total = won[positive].sum()
    without = total - per_cluster(won, positive) - per_cluster(lost, negative) + inside
    pairs = (positives.sum() - positives) * (negatives.sum() - negatives)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = total / (positives.sum() * negatives.sum())
        return float(area), np.where(pairs > 0, without / pairs, np.nan)
