"""Intervals the obvious way: one quantity, a list of prompts left out one at a time, quantiles of scipy.stats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scipy import stats


def left_out_interval(
    statistic: Callable[[list[str]], float], prompts: Sequence[str], units: float, low: float, high: float
) -> tuple[float, float]:
    """The ends, from a statistic of a list of prompts (all of which define it) and of how many units it is made."""
    value = statistic(list(prompts))
    n = len(prompts)
    changes = [(n - 1) / n * (value - statistic([other for other in prompts if other != one])) for one in prompts]
    return from_changes(value, changes, units, low, high)


def from_changes(
    value: float,
    changes: Sequence[float],
    units: float,
    low: float,
    high: float,
    clusters: int | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """The ends, from what the value changes by with each prompt; ``clusters`` of them define it (None: all)."""
    n = clusters or len(changes)
    squares, fourths = (sum(change**power for change in changes) for power in (2, 4))
    variance = n / (n - 1) * squares
    bounded = math.isfinite(low) and math.isfinite(high)
    if math.sqrt(variance) <= 1e-11 * abs(value):
        if not bounded:
            return math.nan, math.nan
        variance, tail = 0.0, (1 - level) / 2
    else:
        excess = max(n * fourths / squares**2 - 3, 0)
        tail = float(stats.norm.sf(stats.t.ppf((1 + level) / 2, max(2 / (2 / (n - 1) + excess / n), 1))))
    if not bounded and n < 4:
        return math.nan, math.nan
    if not math.isfinite(low) and not math.isfinite(high):
        normal = stats.norm(value, math.sqrt(variance))
        return _quantile(normal, tail, upper=False), _quantile(normal, tail, upper=True)
    weight = 0.5 / (units + 0.5)
    ends = []
    for bound, sign in ((low, -1), (high, 1)):
        if math.isfinite(bound):
            mean = value + weight * (bound - value)
            spread = variance * (1 - weight) ** 2 + (mean - value) ** 2 * (1 - weight) / (1 + weight)
        else:
            mean = value + sign * 0.5 * max(0.0, *(sign * change for change in changes))
            spread = variance + (mean - value) ** 2
        upper = sign > 0
        if bounded:
            share, relative = (mean - low) / (high - low), spread / (high - low) ** 2
            count = share * (1 - share) / relative - 1 if relative else math.inf
            inside = 1e-12 < share < 1 - 1e-12 and count > 0
            beta = stats.beta(count * share, count * (1 - share)) if inside else None
            end = bound if beta is None else low + (high - low) * _quantile(beta, tail, upper)
        elif math.isfinite(low):
            away = mean - low
            end = low + _quantile(stats.gamma(away**2 / spread, scale=spread / away), tail, upper)
        else:
            away = high - mean
            end = high - _quantile(stats.gamma(away**2 / spread, scale=spread / away), tail, not upper)
        ends.append(float(end))
    return ends[0], ends[1]


def _quantile(distribution: Any, tail: float, upper: bool) -> float:
    """Where a tail begins; of an upper one from the tail itself, since 1 − 1e-30 is 1."""
    return float(distribution.isf(tail) if upper else distribution.ppf(tail))
