"""Cluster bootstrap: prompts are resampled with all their rollouts, never single tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import OpdProbeWarning

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2_000
LEVEL = 0.95
FEW_PROMPTS = 20
"""Below this many prompts an interval is drawn but warned about; below two there is none."""

_BLOCK = 50


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made. The same seed and the same prompts give the same resamples, so that differences
    between checkpoints, teachers or runs are taken on the same resampled prompts."""

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def weights(self, n_clusters: int) -> Iterator[Floats]:
        """Yield blocks [b, n_clusters] of how often each cluster was drawn, ``resamples`` rows in all."""
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.resamples, _BLOCK):
            rows = min(_BLOCK, self.resamples - start)
            drawn = generator.integers(0, n_clusters, size=(rows, n_clusters))
            flat = drawn + np.arange(rows)[:, None] * n_clusters
            counts = np.bincount(flat.reshape(-1), minlength=rows * n_clusters)
            yield counts.reshape(rows, n_clusters).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of m quantities over c clusters, kept so that a mean can be recomputed from resampled clusters.

    Attributes:
        total: [c, m], sum of the finite defined values.
        count: [c, m], number of defined values, infinite ones included.
        plus, minus: [c, m], numbers of values that are +inf and -inf.
    """

    total: Floats
    count: Floats
    plus: Floats
    minus: Floats

    def first(self, m: int) -> Sums:
        """The first m quantities alone."""
        return Sums(*(array[:, :m] for array in (self.total, self.count, self.plus, self.minus)))

    def means(self, weights: Floats | None = None) -> Floats:
        """Means [b, m] under cluster weights [b, c] (None: each cluster once, b = 1).

        NaN over nothing, and where infinities of both signs meet.
        """
        if weights is None:
            weights = np.ones((1, len(self.total)))
        total, count = weights @ self.total, weights @ self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = total / count
            if self.plus.any():
                means = means + np.where(weights @ self.plus > 0, np.inf, 0.0)
            if self.minus.any():
                means = means - np.where(weights @ self.minus > 0, np.inf, 0.0)
        return means


Statistic = Callable[[Floats], Floats]
"""Weights of clusters [b, c] in, values [b, m] out: whatever can be recomputed on resampled clusters."""


def intervals(sums: Sums, resampling: Resampling) -> tuple[Floats, Floats, Floats]:
    """Means with percentile intervals: three arrays [m], ``mean, lo, hi``; no interval below two clusters.

    Resamples in which a quantity is defined nowhere are left out of its interval.
    """
    return statistic_intervals(sums.means, (sums.count > 0).sum(0), len(sums.total), resampling)


def statistic_intervals(
    statistic: Statistic, clusters: Ints, n_clusters: int, resampling: Resampling
) -> tuple[Floats, Floats, Floats]:
    """A statistic of all clusters, and its percentile interval over resampled ones: three arrays [m].

    Args:
        clusters: [m], the number of clusters in which each value is defined.
    """
    value = statistic(np.ones((1, n_clusters)))[0]
    if n_clusters < 2 or resampling.resamples < 1:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    drawn = np.concatenate([statistic(weights) for weights in resampling.weights(n_clusters)])
    lo, hi = percentile_interval(drawn, resampling.level)
    # One cluster that alone defines the quantity says nothing of how it varies between prompts.
    alone = clusters < 2
    return value, np.where(alone, np.nan, lo), np.where(alone, np.nan, hi)


def paired_difference(a: Statistic, b: Statistic) -> Statistic:
    """b − a, both under the same weights: the same prompts are drawn for the two. +inf − +inf is NaN."""

    def difference(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return b(weights) - a(weights)

    return difference


def gather(values: NDArray[Any], codes: Ints, n_clusters: int) -> Floats:
    """Sums of rows over clusters, [c, ...]; a row of code −1 is left out."""
    summed = np.zeros((n_clusters, *values.shape[1:]))
    inside = codes >= 0
    np.add.at(summed, codes[inside], values[inside].astype(np.float64))
    return summed


def percentile_interval(drawn: Floats, level: float) -> tuple[Floats, Floats]:
    """Percentile interval of each column of resampled values [b, m], NaN left out; two arrays [m]."""
    tail = (1.0 - level) / 2.0
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


def warn_few_prompts(n_prompts: int) -> None:
    """Say that intervals rest on few prompts, or that there are none."""
    if n_prompts < 2:
        warnings.warn(
            f"{n_prompts} prompt: no intervals; they resample prompts and need at least 2",
            OpdProbeWarning,
            stacklevel=3,
        )
    elif n_prompts < FEW_PROMPTS:
        warnings.warn(
            f"{n_prompts} prompts: intervals resample prompts and are rough below {FEW_PROMPTS}",
            OpdProbeWarning,
            stacklevel=3,
        )


def cluster_codes(prompt_ids: list[str]) -> tuple[Ints, int]:
    """The cluster of each rollout, and how many clusters there are; clusters are numbered by sorted prompt id."""
    names, codes = np.unique(np.asarray(prompt_ids, dtype=str), return_inverse=True)
    return codes.astype(np.int64), len(names)
