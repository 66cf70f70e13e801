"""Metrics along the response: states grouped by bins of their position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.intervals import ends, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.errors import InputError
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import check_k, metric_blocks, metric_names
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


def position_curve(
    trace: Trace,
    k: int = 16,
    *,
    bins: int = 20,
    metrics: Sequence[str] | None = None,
    average: str = "token",
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Means of metrics by position in the response.

    Args:
        bins: how many bins of equal width cover the positions from 0 to the last one; with fewer positions
            than bins each position is a bin of its own.
        metrics, average, seed, resamples: as for :func:`opd_probe.curves.summarize`.

    Returns:
        One row per bin that has states: ``position_lo`` and ``position_hi`` (first and last position of the
        bin), ``position`` (mean position of its states), ``n_states``, and ``<metric>``, ``_lo``, ``_hi``, ``_n``.

    Raises:
        InputError, TraceError: a k, a number of bins or a metric that cannot be used.
    """
    import pandas as pd

    k = check_k(trace, k)
    check_average(average)
    if bins < 1:
        raise InputError(f"bins = {bins}: expected at least 1")
    names = [name for name in metric_names(metrics) if METRICS[name].summary == "mean"]
    last = max((int(block["position"].max()) for block in trace.blocks(["position"])), default=0)
    width = max(1, -(-(last + 1) // bins))
    n_bins = last // width + 1
    sums = RolloutSums.empty(trace.rollouts.num_rows, n_bins, len(names))
    places = RolloutSums.empty(trace.rollouts.num_rows, n_bins, 1)
    for block, values in metric_blocks(trace, k, names):
        keys = block["rollout"] * n_bins + block["position"] // width
        sums.add_metrics(keys, block, values, names, k)
        places.add(keys, block["position"].astype(np.float64)[:, None])
    codes, n_clusters = clusters_of(trace)
    if resamples:
        warn_few_prompts(prompts_with_states(trace))
    rows = []
    for index, group in enumerate(sums.clustered(codes, n_clusters, average)):
        n_states = places.count[:, index, 0].sum()
        if n_states == 0:
            continue
        mean, lo, hi = ends(group.estimate([METRICS[name].range for name in names]), level_of(trace, resamples))
        row: dict[str, float] = {
            "position_lo": index * width,
            "position_hi": min((index + 1) * width - 1, last),
            "position": float(places.total[:, index, 0].sum() / n_states),
            "n_states": int(n_states),
        }
        for column, name in enumerate(names):
            row |= {name: mean[column], f"{name}_lo": lo[column], f"{name}_hi": hi[column]}
            row[f"{name}_n"] = int(sums.count[:, index, column].sum())
        rows.append(row)
    return pd.DataFrame(rows)
