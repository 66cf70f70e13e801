"""Resampled prompts, each with all its rollouts: for quantiles, which leaving out one prompt says nothing of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from opd_probe.curves.intervals import LEVEL, Floats

RESAMPLES = 2_000

_BLOCK = 50
_DRAWS = 32_768
"""Resamples drawn at once: at least the first number, and with few clusters as many as make the second of draws."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """The same seed and the same prompts give the same resamples, so that differences between checkpoints, teachers or
    runs are taken on the same resampled prompts."""

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def weights(self, n_clusters: int) -> Iterator[Floats]:
        """Yield blocks [b, n_clusters] of how often each cluster was drawn, ``resamples`` rows in all."""
        generator = np.random.default_rng(self.seed)
        block = max(_BLOCK, _DRAWS // n_clusters)  # which draws a resample has does not depend on it
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = generator.integers(0, n_clusters, size=(rows, n_clusters))
            flat = drawn + np.arange(rows)[:, None] * n_clusters
            counts = np.bincount(flat.reshape(-1), minlength=rows * n_clusters)
            yield counts.reshape(rows, n_clusters).astype(np.float64)


def percentile_interval(
    statistic: Callable[[Floats], Floats], n_clusters: int, resampling: Resampling
) -> tuple[Floats, Floats]:
    """The percentile interval of a statistic over resampled clusters: two arrays [m]; NaN below two clusters.

    Args:
        statistic: weights of clusters [b, c] in, values [b, m] out; NaN is left out.
    """
    if n_clusters < 2 or resampling.resamples < 1:
        none = np.full_like(statistic(np.ones((1, n_clusters)))[0], np.nan)
        return none, none
    drawn = np.concatenate([statistic(weights) for weights in resampling.weights(n_clusters)])
    tail = (1.0 - resampling.level) / 2.0
    return quantile(drawn, tail), quantile(drawn, 1.0 - tail)


def quantile(values: Floats, q: float) -> Floats:
    """The q-quantile of each column of [b, m] by linear interpolation; NaN is left out, infinities are kept."""
    ordered = np.sort(values.T, axis=1).T  # along memory, which is far faster; NaN goes last
    defined = (~np.isnan(ordered)).sum(0)
    place = q * np.maximum(defined - 1, 0)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(defined - 1, 0))
    columns = np.arange(values.shape[1])
    left, right = ordered[low, columns], ordered[high, columns]
    with np.errstate(invalid="ignore"):
        between = np.where((left == right) | (place == low), left, left + (place - low) * (right - left))
    between = np.where(np.isneginf(left), left, between)
    return np.where(defined > 0, between, np.nan)
