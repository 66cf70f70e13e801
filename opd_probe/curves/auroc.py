"""Area under the ROC curve with rollout weights, so that it can be recomputed on resampled prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.bootstrap import Floats


def weighted_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """P(score of a positive > score of a negative) + half of P(equal), under weights.

    Args:
        scores: [r]. positive: bool [r]. weights: [b, r], non-negative.

    Returns:
        [b]; NaN where a weighting leaves only one class.
    """
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    won = np.add.reduceat(weights * positive, starts, axis=1)  # one column per distinct score
    lost = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(lost, axis=1) - lost
    pairs = won.sum(1) * lost.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = (won * (below + 0.5 * lost)).sum(1) / pairs
    return np.where(pairs > 0, area, np.nan)
