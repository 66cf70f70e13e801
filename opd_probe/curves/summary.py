"""One row for one trace: means, intervals and counts of every metric."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.intervals import Floats, Ints, ends, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.curves.remarks import list_remarks
from opd_probe.curves.rollouts import rollout_values, summarise_rollouts
from opd_probe.errors import OpdProbeWarning
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import check_k, metric_blocks, metric_names
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace


def summarize(
    trace: Trace,
    k: int = 16,
    *,
    average: str = "token",
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Means over the states of a trace, with 95 % intervals over prompts (:mod:`opd_probe.curves.intervals`).

    Args:
        trace: what a replay or :func:`opd_probe.read_trace` gave; read once, block by block.
        k: the size of both top sets, at most the K of the trace.
        average: ``"token"``, the mean over all states, or ``"rollout"``, the mean over rollouts of their means.
        seed: changes nothing: each prompt is left out once, and nothing is drawn. Only the quantiles in
            :func:`opd_probe.compare` draw.
        resamples: 0 leaves the intervals out; any other number says nothing here.
        metrics: names from :data:`opd_probe.metrics.METRICS`; None for all.

    Returns:
        ``k``, ``n_prompts``, ``n_rollouts`` (with states), ``n_skipped``, ``n_states``, ``n_empty_overlap``,
        ``n_single_overlap`` (states whose overlap is one token), ``n_short_lists`` (states where a model gives fewer
        than k ids a probability above 0), ``n_outside_vocabulary`` (states whose sampled token lies outside the shared
        vocabulary); for each metric ``<name>``, ``<name>_lo``, ``<name>_hi`` and ``<name>_n`` (states where it is
        defined); for ``<side>_k_for_<share>`` instead ``_median``, ``_p90``, ``_share_beyond`` (states that need more
        than K) and ``_n``; and per rollout ``sequence_mean_reward``, ``response_length``, ``truncation_rate``,
        ``accuracy`` and ``reward_auroc`` likewise. What is undefined or unknown is NaN.

    Raises:
        InputError, TraceError: a k, an average or a metric that cannot be used.
    """
    row = summary_row(trace, k, average=average, resamples=resamples, metrics=metrics)
    for remark in list_remarks([row]):
        warnings.warn(remark, OpdProbeWarning, stacklevel=2)
    return row


def summary_row(
    trace: Trace,
    k: int,
    *,
    average: str = "token",
    resamples: int = RESAMPLES,
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """:func:`summarize` without its remarks, which a command makes on all of its rows together."""
    k = check_k(trace, k)
    check_average(average)
    names = metric_names(metrics)
    means = [name for name in names if METRICS[name].summary == "mean"]
    counted = [name for name in names if METRICS[name].summary == "quantiles"]
    internal = [name for name in ("overlap_ratio", "sampled_reward") if name not in means]
    n_rollouts = trace.rollouts.num_rows
    sums = RolloutSums.empty(n_rollouts, 1, len(means) + len(internal))
    histograms = {name: np.zeros(trace.K + 2, dtype=np.int64) for name in counted}
    empty = single = short = outside = 0
    for block, values in metric_blocks(trace, k, [*means, *internal, *counted]):
        sums.add_metrics(block["rollout"], block, values, [*means, *internal], k)
        shared = values["overlap_ratio"] * k
        empty += int((shared == 0).sum())
        single += int((np.rint(shared) == 1).sum())
        short += int(TopView(block, k).short_lists.sum())
        told = block["token_id"] >= 0  # a trace of top-k tensors may not say what was sampled
        outside += int((told & np.isnan(block["student_logprob"])).sum())
        for name in counted:
            histograms[name] += _histogram(values[name], trace.K)
    codes, n_clusters = clusters_of(trace)
    n_prompts = prompts_with_states(trace)
    used = np.diff(trace.rollout_offsets) > 0
    if resamples:
        warn_few_prompts(n_prompts)
    ranges = [METRICS[name].range for name in (*means, *internal)]
    mean, lo, hi = ends(sums.clustered(codes, n_clusters, average)[0].estimate(ranges), level_of(trace, resamples))
    reward_at = [*means, *internal].index("sampled_reward")
    row: dict[str, Any] = {
        "k": k,
        "n_prompts": n_prompts,
        "n_rollouts": int(used.sum()),
        "n_skipped": int(n_rollouts - used.sum()),
        "n_states": trace.n_states,
        "n_empty_overlap": empty,
        "n_single_overlap": single,
        "n_short_lists": short,
        "n_outside_vocabulary": outside,
    }
    defined = sums.count[:, 0].sum(0)
    for index, name in enumerate(means):
        row |= {name: float(mean[index]), f"{name}_lo": float(lo[index]), f"{name}_hi": float(hi[index])}
        row[f"{name}_n"] = int(defined[index])
    for name in counted:
        row |= _quantiles(name, histograms[name])
    by_rollout = rollout_values(trace, sums.rollout_means(reward_at))
    return row | summarise_rollouts(by_rollout, used, codes, n_clusters, level=level_of(trace, resamples))


def _histogram(values: Floats, depth: int) -> Ints:
    """Counts of 0 … depth, and last of the states that need more."""
    whole = np.where(np.isnan(values), depth + 1, values).astype(np.int64)
    return np.bincount(whole, minlength=depth + 2)


def _quantiles(name: str, histogram: Ints) -> dict[str, float]:
    """Median and 90th percentile over all states, from counts. Beyond K they are unknown and so NaN."""
    n = int(histogram.sum())
    beyond = histogram[-1] / n if n else np.nan
    return {
        f"{name}_median": _histogram_quantile(histogram, 0.5),
        f"{name}_p90": _histogram_quantile(histogram, 0.9),
        f"{name}_share_beyond": float(beyond),
        f"{name}_n": n - int(histogram[-1]),
    }


def _histogram_quantile(histogram: Ints, q: float) -> float:
    """Linear interpolation between order statistics, as numpy's default; NaN once it touches the last cell."""
    n = int(histogram.sum())
    if n == 0:
        return float("nan")
    place = q * (n - 1)
    cumulative = np.cumsum(histogram)
    low, high = np.searchsorted(cumulative, [np.floor(place), np.ceil(place)], side="right")
    if high == len(histogram) - 1:
        return float("nan")
    return float(low + (place - np.floor(place)) * (high - low))
