"""Intervals of what is made of several accuracies on the same problems: the problems are resampled together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "accuracy_of", "difference_of", "recovery_of", "resampled"]

Estimate = tuple[float, float, float]
"""A value with the ends of its 95 % interval."""

Scores = Mapping[str, float]
"""Problem → share of its rollouts that are correct."""

_RESAMPLES: Final = 2000
Floats = NDArray[np.float64]


def resampled(scores: Sequence[Scores], statistic: Callable[[Floats], Floats], seed: int = 0) -> Estimate:
    """A function of mean scores, with the percentile interval over resampled problems.

    Args:
        scores: of m models; the problems that all of them answered count.
        statistic: means [b, m] in, values [b] out; values that are not finite are left out of the interval.
    """
    shared = [problem for problem in scores[0] if all(problem in other for other in scores)]
    values = np.array([[row[problem] for row in scores] for problem in shared])
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(0, n, size=(_RESAMPLES, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn])
    resamples = statistic(counts @ values / n)
    resamples = resamples[np.isfinite(resamples)]
    value = float(statistic(values.mean(axis=0, keepdims=True))[0])
    if n < 2 or len(resamples) == 0:
        return value, np.nan, np.nan
    low, high = np.quantile(resamples, [0.025, 0.975])
    return value, float(low), float(high)


def accuracy_of(scores: Scores) -> Estimate:
    """avg@n of one model."""
    return resampled([scores], lambda means: means[:, 0])


def difference_of(first: Scores, second: Scores) -> Estimate:
    """Accuracy of the first minus that of the second."""
    return resampled([first, second], lambda means: means[:, 0] - means[:, 1])


def recovery_of(before: Scores, after: Scores, teacher: Scores) -> Estimate:
    """Gap recovery (§3.2); NaN where student and teacher were equal before."""

    def recovery(means: Floats) -> Floats:
        gap = means[:, 2] - means[:, 0]
        gained: Floats = means[:, 1] - means[:, 0]
        return np.divide(gained, gap, out=np.full_like(gap, np.nan), where=gap != 0)

    return resampled([before, after, teacher], recovery)
