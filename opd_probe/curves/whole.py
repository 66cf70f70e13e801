"""Quantities of a whole trace (ratios of sums, some above a percentile), with intervals that resample prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.accumulate import RolloutSums, clusters_of, stack
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.clusters import gather, units_of
from opd_probe.curves.intervals import Estimate, Floats, Ints, ends, estimate
from opd_probe.curves.looks import level_of
from opd_probe.metrics import METRICS
from opd_probe.metrics.context import context_columns, correctness
from opd_probe.metrics.states import BLOCK_STATES
from opd_probe.metrics.view import TopView
from opd_probe.metrics.whole import FORKING, TRACE_METRICS, Cut, TraceMetric, single, state_terms
from opd_probe.trace import Trace

Used = NDArray[np.bool_]


def diagnose(
    trace: Trace,
    *,
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Every quantity of a whole trace, with 95 % intervals over prompts.

    Args:
        trace: read a few times, block by block, without its top lists; beside a block, one float32 column of it is in
            memory at a time.
        seed, resamples: as for :func:`opd_probe.summarize`. Percentiles that a definition refers to are those of the
            trace, whichever prompt is left out.

    Returns:
        For each of :data:`opd_probe.metrics.whole.TRACE_METRICS` ``<name>``, ``<name>_lo``, ``<name>_hi`` and
        ``<name>_n`` (states, or rollouts, where it is defined); and ``forking_entropy``, the 80th percentile of the
        student's entropy. What is undefined or unknown is NaN.
    """
    used = np.diff(trace.rollout_offsets) > 0
    sums = whole_sums(trace, used)
    codes, n_clusters = clusters_of(trace)
    mean, lo, hi = ends(sums.estimate(codes, n_clusters), level_of(trace, resamples))
    row: dict[str, Any] = {"forking_entropy": sums.cuts[Cut("student_entropy", FORKING)]}
    for index, metric in enumerate(sums.metrics):
        name = metric.name
        row |= {name: float(mean[index]), f"{name}_lo": float(lo[index]), f"{name}_hi": float(hi[index])}
        row[f"{name}_n"] = int(sums.defined[:, index].sum())
    return row


@dataclass(frozen=True)
class WholeSums:
    """Sums of the terms of each metric by rollout ([r, s] each), and how often each is defined, [r, m]."""

    metrics: Sequence[TraceMetric]
    totals: Sequence[Floats]
    defined: Floats
    cuts: Mapping[Cut, float]

    def estimate(self, codes: Ints, n_clusters: int) -> Estimate:
        """Every quantity, over clusters of rollouts; a rollout of code −1 is left out."""
        borders = np.cumsum([metric.n_terms for metric in self.metrics])[:-1]

        def combine(sums: Floats) -> Floats:
            parts = zip(self.metrics, np.split(sums, borders, axis=1), strict=True)
            return np.stack([metric.combine(*part.T) for metric, part in parts], axis=1)

        terms = gather(np.concatenate(list(self.totals), axis=1), codes, n_clusters)
        clusters = (gather(self.defined, codes, n_clusters) > 0).sum(0)
        units = units_of(self.defined, codes, n_clusters)
        return estimate((terms,), combine, clusters, units, [metric.range for metric in self.metrics])


def whole_sums(trace: Trace, used: Used) -> WholeSums:
    """The sums of every quantity of a whole trace.

    Args:
        used: bool [n_rollouts], the rollouts that count; percentiles are taken over their states alone.
    """
    metrics = list(TRACE_METRICS.values())
    cuts = _cuts(trace, dict.fromkeys(cut for metric in metrics for cut in metric.cuts), used)
    of_states = [metric for metric in metrics if metric.level == "state"]
    of_rollouts = [metric for metric in metrics if metric.level == "rollout"]
    averaged = list(dict.fromkeys(name for metric in of_rollouts for name in metric.needs))
    means = RolloutSums.empty(len(used), 1, len(averaged))
    sums = np.zeros((len(used), sum(metric.n_terms + 1 for metric in of_states)))
    for block, view in _views(trace, metrics):
        keep = used[block["rollout"]]
        if not keep.any():
            continue
        keys = block["rollout"][keep]
        means.add(keys, stack({name: METRICS[name].function(view) for name in averaged}, averaged)[keep])
        added = np.concatenate([_with_count(terms[keep]) for terms in state_terms(of_states, view, cuts)], axis=1)
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        sums[keys[starts]] += np.add.reduceat(added, starts, axis=0)
    values = {name: np.where(used, means.rollout_means(index), np.nan) for index, name in enumerate(averaged)}
    values["correct"] = np.where(used, correctness(trace), np.nan)
    by_metric = dict(
        zip(of_states, np.split(sums, np.cumsum([m.n_terms + 1 for m in of_states])[:-1], axis=1), strict=True)
    )
    by_metric |= {metric: _with_count(np.stack(metric.terms(values, ()), axis=1)) for metric in of_rollouts}
    totals = [by_metric[metric][:, :-1] for metric in metrics]
    return WholeSums(metrics, totals, np.stack([by_metric[metric][:, -1] for metric in metrics], axis=1), cuts)


def _with_count(terms: Floats) -> Floats:
    """Terms [n, s] with 0 where they are undefined, and a last column that is 1 where they are defined."""
    known = ~np.isnan(terms[:, :1])
    return np.concatenate([np.where(known, terms, 0.0), known], axis=1)


def _views(trace: Trace, metrics: Sequence[TraceMetric]) -> Iterator[tuple[dict[str, Any], TopView]]:
    """Blocks of states with what the metrics read: no top lists."""
    there = set(trace.columns)
    needed = {column for metric in metrics for name in metric.needs for column in METRICS[name].needs}
    context = context_columns(trace, [name for metric in metrics for name in metric.context])
    for block in trace.blocks(["position", "token_id", *sorted(needed & there)], BLOCK_STATES):
        yield block, TopView(block | context(block), 1)


def _cuts(trace: Trace, cuts: Iterable[Cut], used: Used) -> dict[Cut, float]:
    """Quantiles over the states of the used rollouts; NaN over nothing. One pass, and one float32 column in memory, for
    each metric of which quantiles are asked for."""
    found: dict[Cut, float] = {}
    wanted = list(cuts)
    for name in dict.fromkeys(cut.metric for cut in wanted):
        metric = METRICS[name]
        parts = []
        for block in trace.blocks(["position", *(n for n in metric.needs if n in trace.columns)], BLOCK_STATES):
            values = single(metric.function(TopView(block, 1)))
            parts.append(values[used[block["rollout"]] & np.isfinite(values)])
        column = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
        for cut in (cut for cut in wanted if cut.metric == name):
            known = len(column) > 0
            found[cut] = float(np.quantile(column, cut.quantile, overwrite_input=True)) if known else float("nan")
    return found
