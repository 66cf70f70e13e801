"""Intervals over prompts: each prompt is left out once with all its rollouts, never single tokens.

What a quantity changes by without a prompt gives its variance (the jackknife over clusters). The distribution that has
this mean and this variance depends on the quantity's range: Beta between two bounds, gamma above or below one, normal
without any, so that no end leaves the range and the long side of a skewed quantity is the longer one. The tail
probability is that of Student's t, with as few degrees of freedom as the fourth moment of the changes says: few where
few prompts lead. And where there is a bound, half a unit is added for each end that the prompts at hand may have
missed: at the bound or, towards infinity, as far out as the farthest prompt. At 0 of n, where prompts do not vary, it
alone makes the interval: that of Clopper and Pearson for 0 of 2 n.

The distributions are those of Korn and Graubard (1998, shares of clustered samples) and Fay and Feuer (1997, gamma
intervals; the half unit is the mid-p form of Fay and Kim, 2017). ``benchmarks/coverage.py`` measures what they hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import OpdProbeWarning
from opd_probe.metrics.registry import Range

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
FEW_PROMPTS = 20
"""Below this many prompts an interval is drawn but warned about; below two there is none."""

FEW_UNBOUNDED = 4
"""Below this many prompts a quantity without two bounds has no interval: where few states hold most of it, as of a KL,
fewer prompts have not seen them, and nothing at hand says so."""

_UNIT = 0.5
_NOISE = 1e-11
"""Changes relative to the value that are rounding."""

_LARGE = 1e8
"""Counts from which on Beta and gamma distributions are normal to what their quantiles are exact to."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """m quantities, and what each would be without one of c clusters.

    Attributes:
        value: [m]; infinite where a value is.
        finite: [m], over the finite values alone; NaN over nothing.
        left_out: [c, m], ``finite`` without each cluster; NaN where nothing is left.
        clusters: [m], the number of clusters in which each is defined.
        units: [m], how many things could have been otherwise, see :func:`opd_probe.curves.clusters.units_of`.
        low, high: [m], the range.
        scale: [m], the size of what ``finite`` was computed from.
    """

    value: Floats
    finite: Floats
    left_out: Floats
    clusters: Ints
    units: Floats
    low: Floats
    high: Floats
    scale: Floats


def estimate(
    terms: Sequence[Floats],
    combine: Callable[..., Floats],
    clusters: Ints,
    units: Floats,
    ranges: Sequence[Range],
    *,
    value: Floats | None = None,
) -> Estimate:
    """What is made of sums over clusters, with each cluster left out once.

    Args:
        terms: [c, ...] each, what every cluster adds.
        combine: their sums, [b, ...] each, in; the quantities [b, m] out.
        value: [m], where it differs from what is combined by infinite values.
    """
    sums = [term.sum(0, keepdims=True) for term in terms]
    finite = combine(*sums)[0]
    left_out = combine(*(whole - part for whole, part in zip(sums, terms, strict=True)))
    return of_left_out(finite if value is None else value, finite, left_out, clusters, units, ranges)


def of_left_out(
    value: Floats, finite: Floats, left_out: Floats, clusters: Ints, units: Floats, ranges: Sequence[Range]
) -> Estimate:
    """An :class:`Estimate` of quantities that are no function of sums over clusters; see there for the arguments."""
    low, high = np.asarray(ranges, dtype=np.float64).reshape(-1, 2).T
    return Estimate(value, finite, left_out, clusters, units, low, high, np.abs(finite))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """b − a, the same prompts left out of both: what they have in common cancels. +inf − +inf is NaN."""
    with np.errstate(invalid="ignore"):
        return Estimate(
            b.value - a.value,
            b.finite - a.finite,
            b.left_out - a.left_out,
            np.minimum(a.clusters, b.clusters),
            np.minimum(a.units, b.units),
            b.low - a.high,
            b.high - a.low,
            a.scale + b.scale,
        )


def ends(of: Estimate, level: float | None) -> tuple[Floats, Floats, Floats]:
    """The values with both ends of their intervals, [m] each; NaN for ends that are not asked for (no level)."""
    none = np.full_like(of.value, np.nan)
    return of.value, *((none, none) if level is None else interval(of, level=level))


def interval(of: Estimate, *, exact: bool = False, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The interval of each quantity: its two ends [m], within its range.

    NaN where nothing holds: below two clusters; below :data:`FEW_UNBOUNDED` of a quantity without two bounds, or where
    it is the same in all of them; where a cluster alone defines it. An infinite value makes one end infinite.

    Args:
        exact: what does not vary at all is known: both ends are its value.
        level: how often such an interval holds what it is of.
    """
    change, variance, freedom = _changes(of)
    still = np.sqrt(variance) <= _NOISE * of.scale
    tail = np.where(still, (1 - level) / 2, _tail(freedom, level))
    variance = np.asarray(np.where(still, 0.0, variance))
    bounded = np.isfinite(of.low) & np.isfinite(of.high)
    none = (of.clusters < 2) | np.isnan(of.value) | np.isnan(variance)
    none |= ~bounded & (still | (of.clusters < FEW_UNBOUNDED)) & ~(exact & still)
    ends = []
    for side, infinity in ((-1, -np.inf), (1, np.inf)):
        end = _end(of, change, variance, tail, side)
        end = np.where(exact & still, of.finite, end)
        end = np.where(of.value == infinity, infinity, end)
        ends.append(np.where(none, np.nan, end))
    return ends[0], ends[1]


def spread(of: Estimate) -> tuple[Floats, Floats]:
    """The variance of each quantity, [m], and the degrees of freedom that it is known with."""
    return _changes(of)[1:]


def _changes(of: Estimate) -> tuple[Floats, Floats, Floats]:
    """What each cluster changes, [c, m]; the variance that follows, [m], and its degrees of freedom.

    The variance of a variance is (2 / (c − 1) + excess kurtosis / c) times its square, and 2 / degrees of freedom times
    its square where it is a multiple of χ² (Satterthwaite).
    """
    clusters = np.maximum(of.clusters, 2).astype(np.float64)
    change = (clusters - 1) / clusters * (of.finite - of.left_out)
    variance = np.asarray(clusters / (clusters - 1) * (change**2).sum(0), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = (change / np.abs(change).max(0, initial=0.0)) ** 2
        excess = np.maximum(clusters * (relative**2).sum(0) / relative.sum(0) ** 2 - 3.0, 0.0)
    freedom = np.maximum(2.0 / (2.0 / (clusters - 1) + excess / clusters), 1.0)
    return change, variance, np.asarray(freedom, dtype=np.float64)


def _tail(freedom: Floats, level: float) -> Floats:
    """[m], the normal tail probability beyond the quantile of Student's t."""
    from scipy.special import ndtr, stdtrit

    return np.asarray(ndtr(-stdtrit(freedom, (1 + level) / 2)), dtype=np.float64)


def _end(of: Estimate, change: Floats, variance: Floats, tail: Floats, side: int) -> Floats:
    """The lower (side −1) or the upper end (1) of each quantity, [m]."""
    bound = of.high if side > 0 else of.low
    weight = _UNIT / (of.units + _UNIT)
    with np.errstate(invalid="ignore"):
        to_bound = weight * (bound - of.finite)
        bounded = np.isfinite(bound)
        farthest = _UNIT * side * (side * change).max(0, initial=0.0)
        # Without any bound there is no side of which one can say that it is the long one.
        shift = np.where(bounded, to_bound, np.where(np.isfinite(of.low) | np.isfinite(of.high), farthest, 0.0))
        # A Beta distribution of 0 of n and half a unit has mean w and variance w² (1 − w) / (1 + w), w its weight.
        kept = np.where(bounded, (1 - weight) ** 2, 1.0)
        added = np.where(bounded, (1 - weight) / (1 + weight), 1.0)
        spread = kept * variance + added * shift**2
        mean = np.clip(of.finite + shift, of.low, of.high)
    return _quantile(mean, spread, of.low, of.high, tail, side)


def _quantile(mean: Floats, variance: Floats, low: Floats, high: Floats, tail: Floats, side: int) -> Floats:
    """[m], the value beyond which (below for side −1, above for 1) lies the tail of the distribution of the range."""
    from scipy.special import betaincinv, gammainccinv, gammaincinv, ndtri

    below, above = np.isfinite(low), np.isfinite(high)
    result: Floats = mean - side * ndtri(tail) * np.sqrt(variance)  # normal
    # Seen from the bound that the end runs to or, where that is infinite, from the other one.
    near = np.where(above if side > 0 else ~below, high, low)
    away = np.abs(mean - near)
    towards = np.where(near == high, side > 0, side < 0)  # the end lies between the mean and that bound
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shape = away**2 / variance
        scaled = np.where(towards, gammaincinv(shape, tail), gammainccinv(shape, tail)) / shape * away
        one = (below ^ above) & (shape < _LARGE)
        result = np.where(one, near + np.where(near == high, -1, 1) * scaled, result)
        width = high - low
        share = away / width
        count = share * (1 - share) * width**2 / variance - 1
        first, second = count * share, count * (1 - share)
        inner = width * betaincinv(first, second, tail)
        both = below & above & ~(np.minimum(first, second) > _LARGE)
        result = np.where(both, near - side * inner, result)
        result = np.where(both & ((count <= 0) | (away == 0)), near, result)
    result = np.where((below ^ above) & (away == 0), near, result)
    result = np.where(variance == 0, mean, result)
    return np.clip(result, low, high)


def warn_few_prompts(n_prompts: int) -> None:
    """Say that intervals rest on few prompts, or that there are none."""
    if n_prompts < 2:
        warnings.warn(
            f"{n_prompts} prompt: no intervals; they resample prompts and need at least 2",
            OpdProbeWarning,
            stacklevel=3,
        )
    elif n_prompts < FEW_PROMPTS:
        none = (
            f"; below {FEW_UNBOUNDED} there are none of quantities without bounds" if n_prompts < FEW_UNBOUNDED else ""
        )
        warnings.warn(
            f"{n_prompts} prompts: intervals resample prompts and are rough below {FEW_PROMPTS}{none}",
            OpdProbeWarning,
            stacklevel=3,
        )
