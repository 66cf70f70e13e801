"""Sums over clusters: a prompt with all its rollouts is one, and what varies is what other prompts would have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Estimate, Floats, Ints, estimate
from opd_probe.metrics.registry import Range


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of m quantities over c clusters, kept so that a mean can be recomputed without a cluster.

    Attributes:
        total: [c, m], sum of the finite defined values.
        count: [c, m], number of defined values, infinite ones included.
        plus, minus: [c, m], numbers of values that are +inf and -inf.
        units: [m], see :func:`units_of`.
    """

    total: Floats
    count: Floats
    plus: Floats
    minus: Floats
    units: Floats

    def first(self, m: int) -> Sums:
        """The first m quantities alone."""
        parts = (self.total, self.count, self.plus, self.minus, self.units)
        total, count, plus, minus, units = (array[..., :m] for array in parts)
        return Sums(total, count, plus, minus, units)

    def means(self) -> Floats:
        """[m]; NaN over nothing, and where infinities of both signs meet."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = self.total.sum(0) / self.count.sum(0)
            means = means + np.where(self.plus.sum(0) > 0, np.inf, 0.0)
            return means - np.where(self.minus.sum(0) > 0, np.inf, 0.0)

    def estimate(self, ranges: Sequence[Range]) -> Estimate:
        """The means, and what the mean of the finite values would be without each cluster."""
        finite = self.count - self.plus - self.minus
        clusters = (self.count > 0).sum(0)
        return estimate((self.total, finite), _mean, clusters, self.units, ranges, value=self.means())


def _mean(total: Floats, count: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def gather(values: NDArray[Any], codes: Ints, n_clusters: int) -> Floats:
    """Sums of rows over clusters, [c, ...]; a row of code −1 is left out."""
    summed = np.zeros((n_clusters, *values.shape[1:]))
    inside = codes >= 0
    np.add.at(summed, codes[inside], values[inside].astype(np.float64))
    return summed


def units_of(counts: Floats, codes: Ints, n_clusters: int) -> Floats:
    """Observations over rollouts per prompt: of states the steps that the rollouts of a prompt take side by side, of
    rollouts the prompts. Rollouts of a prompt are alike: what one shows at a step, all of them may.

    Args:
        counts: [r, ...], for each rollout how often each quantity is defined in it.
        codes: [r], the cluster of each rollout; −1 leaves it out.

    Returns:
        [...]; 0 where nothing is defined.
    """
    defined = gather(counts > 0, codes, n_clusters)
    per_prompt = defined.sum(0) / np.maximum((defined > 0).sum(0), 1)
    units: Floats = counts[codes >= 0].sum(0) / np.maximum(per_prompt, 1.0)
    return units


def cluster_codes(prompt_ids: list[str]) -> tuple[Ints, int]:
    """The cluster of each rollout, and how many clusters there are; clusters are numbered by sorted prompt id."""
    names, codes = np.unique(np.asarray(prompt_ids, dtype=str), return_inverse=True)
    return codes.astype(np.int64), len(names)
