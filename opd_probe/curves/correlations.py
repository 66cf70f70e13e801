"""Whether what the teacher says of a rollout goes with its reward: correlations over rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.accumulate import RolloutSums, clusters_of, stack
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.clusters import units_of
from opd_probe.curves.intervals import Floats, Ints, ends, of_left_out
from opd_probe.curves.looks import level_of
from opd_probe.metrics.states import metric_blocks
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = ("sampled_reward", "absolute_reward", "student_entropy", "teacher_entropy")
"""Means over the states of a rollout: the gap log q − log p of the sampled tokens, its size, and both entropies."""

KINDS = ("pearson", "spearman")


def correlations(trace: Trace, *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Correlations over rollouts of their reward with what the models say of them on average.

    The reward is the rollout's ``score``, as a grader or a trainer gave it: 0 and 1, or any number.

    Args:
        resamples: 0 leaves the intervals out.

    Returns:
        One row per mean over a rollout's states, of :data:`QUANTITIES`: ``quantity``, ``pearson`` and ``spearman`` (of
        ranks, equal values sharing theirs) with ``_lo`` and ``_hi`` (95 %, each prompt left out once with all its
        rollouts), ``n`` (rollouts with a score and a finite mean) and ``n_prompts``. NaN where one of the two does not
        vary, or nothing is known.
    """
    import pandas as pd

    values = _rollout_means(trace)
    score = np.array(
        [np.nan if one is None else one for one in trace.rollouts.column("score").to_pylist()], dtype=float
    )
    codes, _ = clusters_of(trace)
    rows = []
    for column, name in enumerate(QUANTITIES):
        known = np.isfinite(score) & np.isfinite(values[:, column])
        x, y, where = score[known], values[known, column], codes[known]
        clusters = np.unique(where)
        row: dict[str, Any] = {"quantity": name}
        for kind in KINDS:
            value, left_out = _left_out(x, y, where, clusters, ranked=kind == "spearman")
            units = units_of(np.ones((len(x), 1)), np.searchsorted(clusters, where), len(clusters))
            count = np.array([len(clusters)])
            one = np.array([value])
            of = of_left_out(one, one, left_out[:, None], count, units, [(-1.0, 1.0)])
            found = ends(of, level_of(trace, resamples) if len(clusters) > 1 else None)
            row |= {f"{kind}{end}": float(part[0]) for end, part in zip(("", "_lo", "_hi"), found, strict=True)}
        rows.append(row | {"n": len(x), "n_prompts": len(clusters)})
    return pd.DataFrame(rows)


def correlation_columns(trace: Trace) -> dict[str, Any]:
    """The same as columns of one row: ``pearson_score_<quantity>`` and ``spearman_score_<quantity>``, with ``_lo``,
    ``_hi`` and ``_n``."""
    row: dict[str, Any] = {}
    for found in correlations(trace).to_dict("records"):
        for kind in KINDS:
            name = f"{kind}_score_{found['quantity']}"
            row |= {f"{name}{end}": found[f"{kind}{end}"] for end in ("", "_lo", "_hi")} | {f"{name}_n": found["n"]}
    return row


def _rollout_means(trace: Trace) -> Floats:
    """[n_rollouts, m]; NaN where nothing is known."""
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(QUANTITIES))
    for block, values in metric_blocks(trace, 1, QUANTITIES):
        sums.add(block["rollout"], stack(values, QUANTITIES))
    return np.stack([sums.rollout_means(column) for column in range(len(QUANTITIES))], axis=1)


def _left_out(x: Floats, y: Floats, codes: Ints, clusters: Ints, *, ranked: bool) -> tuple[float, Floats]:
    """The correlation of [r] pairs, and what it is without each cluster."""
    pairs = np.stack([x, y])
    whole = np.stack([_ranks(one, one) for one in pairs]) if ranked else pairs
    left_out = np.full(len(clusters), np.nan)
    for place, cluster in enumerate(clusters):
        gone = codes == cluster
        rest = whole[:, ~gone]
        if ranked:  # what each of the others had below it in the cluster
            rest = rest - np.stack([_ranks(one[~gone], one[gone]) for one in pairs])
        left_out[place] = _pearson(rest)
    return _pearson(whole), left_out


def _ranks(values: Floats, among: Floats) -> Floats:
    """For each value how many of the others are below it, and half of those equal to it."""
    ordered = np.sort(among)
    ranks: Floats = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2.0
    return ranks


def _pearson(pairs: NDArray[np.float64]) -> float:
    """Of [2, r]; NaN where one of the two does not vary."""
    if pairs.shape[1] < 2 or (pairs.min(1) == pairs.max(1)).any():
        return float("nan")
    centred = pairs - pairs.mean(1, keepdims=True)
    centred /= np.sqrt((centred**2).sum(1, keepdims=True))
    return float(np.clip(centred[0] @ centred[1], -1.0, 1.0))
