"""The sampled reward along the response: its quantiles by position, and where its signal lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, clusters_of
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.clusters import gather, units_of
from opd_probe.curves.intervals import Floats, ends, estimate
from opd_probe.curves.looks import level_of
from opd_probe.errors import InputError
from opd_probe.metrics.divergence import sampled_reward
from opd_probe.metrics.registry import UNIT_RANGES
from opd_probe.metrics.states import BLOCK_STATES
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_COLUMNS = ["position", "student_logprob", "teacher_logprob"]


def reward_by_depth(trace: Trace, *, bins: int = 20, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
    """Quantiles of the sampled reward r = log q − log p of the token, by position in the response (arXiv 2603.25562).

    One float32 reward and one small bin number per state are in memory.

    Args:
        bins: of equal width, from position 0 to the last; with fewer positions each is a bin of its own.

    Returns:
        One row per bin that has states: ``position_lo``, ``position_hi``, ``position`` (mean over its states),
        ``n_states``, ``sampled_reward`` (mean, in nats), ``sampled_reward_n`` (states where it is known) and
        ``sampled_reward_q05`` and so on for each quantile. A quantile is taken over known rewards, infinite ones too.

    Raises:
        InputError: a number of bins or a quantile that cannot be used.
    """
    import pandas as pd

    _check_bins(bins)
    if not all(0 <= q <= 1 for q in quantiles):
        raise InputError(f"quantiles = {list(quantiles)}: expected numbers from 0 to 1")
    last = max((int(block["position"].max()) for block in trace.blocks(["position"])), default=0)
    width = max(1, -(-(last + 1) // bins))
    rewards, numbers = np.empty(trace.n_states, np.float32), np.empty(trace.n_states, np.int32)
    places = np.zeros(last // width + 1)
    start = 0
    for block in trace.blocks(_COLUMNS, BLOCK_STATES):
        rows = slice(start, start := start + len(block["position"]))
        rewards[rows] = sampled_reward(TopView(block, 1))
        numbers[rows] = block["position"] // width
        places += np.bincount(numbers[rows], block["position"], len(places))
    table = []
    for index in range(len(places)):
        inside = rewards[numbers == index].astype(np.float64)
        if not len(inside):
            continue
        known = np.sort(inside[~np.isnan(inside)])
        row: dict[str, float] = {
            "position_lo": index * width,
            "position_hi": min((index + 1) * width - 1, last),
            "position": places[index] / len(inside),
            "n_states": len(inside),
            "sampled_reward": float(known.mean()) if len(known) else np.nan,
            "sampled_reward_n": len(known),
        }
        row |= {f"sampled_reward_q{round(100 * q):02d}": _quantile(known, q) for q in quantiles}
        table.append(row)
    return pd.DataFrame(table)


def _quantile(ordered: Floats, q: float) -> float:
    """By linear interpolation; −inf where it touches a token that the teacher rules out."""
    if not len(ordered):
        return float("nan")
    place = q * (len(ordered) - 1)
    low, high = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    return float(low if low == high or np.isneginf(low) else low + (place % 1) * (high - low))


def signal_by_depth(
    trace: Trace,
    *,
    bins: int = 20,
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Where along the response the signal Σ|r| lies, cumulated over relative position (after arXiv 2602.15260).

    Args:
        bins: of equal width from 0 to 1; a state of position t in a response of T tokens lies at (t + ½) / T.
        seed, resamples: as for :func:`opd_probe.summarize`.

    Returns:
        One row per bin: ``relative`` (its upper end), ``n_states``, ``signal_share`` (its part of Σ|r|, infinite r left
        out) and ``cumulative_signal`` (the part of all bins up to it) with ``_lo`` and ``_hi``; both sum to 1.

    Raises:
        InputError: a number of bins that cannot be used.
    """
    import pandas as pd

    _check_bins(bins)
    n_rollouts = trace.rollouts.num_rows
    lengths = np.asarray(trace.rollouts.column("response_length").to_numpy(zero_copy_only=False), dtype=np.float64)
    sums = RolloutSums.empty(n_rollouts * bins, 1, 1)
    counts = np.zeros(bins)
    for block in trace.blocks(_COLUMNS, BLOCK_STATES):
        relative = (block["position"] + 0.5) / lengths[block["rollout"]]
        number = np.clip(relative * bins, 0, bins - 1).astype(np.int64)
        sums.add(block["rollout"] * bins + number, np.abs(sampled_reward(TopView(block, 1)))[:, None])
        counts += np.bincount(number, minlength=bins)
    codes, n_clusters = clusters_of(trace)
    signal = gather(sums.total.reshape(n_rollouts, bins), codes, n_clusters)

    def cumulative(sums: Floats) -> Floats:
        drawn = np.cumsum(sums, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share: Floats = drawn / drawn[:, -1:]
        return share

    clusters = np.full(bins, int((signal.sum(1) > 0).sum()))
    units = np.full(bins, units_of(sums.count.reshape(n_rollouts, bins).sum(1), codes, n_clusters))
    units[-1] = np.inf  # all of it is all of it
    shares = estimate((signal,), cumulative, clusters, units, [UNIT_RANGES["share"]] * bins)
    value, lo, hi = ends(shares, level_of(trace, resamples))
    return pd.DataFrame(
        {
            "relative": np.arange(1, bins + 1) / bins,
            "n_states": counts.astype(np.int64),
            "signal_share": np.diff(value, prepend=0.0),
            "cumulative_signal": value,
            "cumulative_signal_lo": lo,
            "cumulative_signal_hi": hi,
        }
    )


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise InputError(f"bins = {bins}: expected at least 1")
