"""How many prompts a precision takes, from a trace of fewer: by the variance between its prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, clusters_of
from opd_probe.curves.intervals import LEVEL, Estimate, spread
from opd_probe.curves.rollouts import ROLLOUT_QUANTITIES, rollout_sums, rollout_values
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import metric_blocks
from opd_probe.trace import Trace

MAIN = ("overlap_ratio", "overlap_advantage", "entropy_gap", "student_overlap_mass", "reverse_kl", "accuracy")
WIDTHS = (0.02, 0.01, 0.005)

_UNKNOWN = {"prompts": None, "prompts_lo": None, "prompts_hi": None}


def prompts_needed(
    trace: Trace, widths: Mapping[str, Sequence[float]], k: int = 16, *, average: str = "token"
) -> list[dict[str, Any]]:
    """How many prompts like those of a trace a 95 % interval of value ± width takes.

    Of n prompts it is z √(σ² / n) wide to each side, σ² being the variance between prompts; that of the trace is known
    as well as a variance of that many degrees of freedom is.

    Args:
        widths: by metric, half-widths in its unit.
        k, average: as for :func:`opd_probe.summarize`, which refuses what cannot be used.

    Returns:
        A row for each metric and width: ``metric``, ``width``, ``prompts``, and the ends ``prompts_lo`` and
        ``prompts_hi`` of their 95 % interval. None where the trace does not tell.

    """
    from scipy.special import gammaincinv, ndtri

    estimates = _estimates(trace, list(widths), k, average)
    rows = []
    for name, wanted in widths.items():
        if name not in estimates:  # an AUROC, whose variance hangs on which prompts are right
            rows += [{"metric": name, "width": width, **_UNKNOWN} for width in wanted]
            continue
        of, column = estimates[name]
        variance, freedom = (float(values[column]) for values in spread(of))
        prompts = int(of.clusters[column])
        known = prompts > 1 and math.isfinite(variance) and math.isfinite(of.value[column])
        for width in wanted:
            row: dict[str, Any] = {"metric": name, "width": width, **_UNKNOWN}
            if known:
                needed = prompts * variance * (ndtri((1 + LEVEL) / 2) / width) ** 2
                for end, p in (("", None), ("_lo", (1 + LEVEL) / 2), ("_hi", (1 - LEVEL) / 2)):
                    times = 1.0 if p is None else freedom / float(2 * gammaincinv(freedom / 2, p))
                    if not math.isnan(needed * times):  # as where no prompt differs from the others
                        row[f"prompts{end}"] = max(2, math.ceil(min(needed * times, 1e15)))
            rows.append(row)
    return rows


def _estimates(trace: Trace, names: Sequence[str], k: int, average: str) -> dict[str, tuple[Estimate, int]]:
    """By metric an estimate, and its place in it."""
    means = [name for name in dict.fromkeys((*names, "sampled_reward")) if name in METRICS]
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(means))
    for block, values in metric_blocks(trace, k, means):
        sums.add_metrics(block["rollout"], block, values, means, k)
    codes, n_clusters = clusters_of(trace)
    of_states = sums.clustered(codes, n_clusters, average)[0].estimate([METRICS[name].range for name in means])
    used = np.diff(trace.rollout_offsets) > 0
    by_rollout = rollout_values(trace, sums.rollout_means(means.index("sampled_reward")))[used]
    ranges = [of for _, of in ROLLOUT_QUANTITIES.values()]
    of_rollouts = rollout_sums(by_rollout, codes[used], n_clusters).estimate(ranges)
    found = {name: (of_states, place) for place, name in enumerate(means)}
    return found | {name: (of_rollouts, place) for place, name in enumerate(ROLLOUT_QUANTITIES)}
