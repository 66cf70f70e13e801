"""Means of the bounds that a served teacher's lists give, with intervals over prompts."""

from __future__ import annotations

from typing import Any

from opd_probe.curves.accumulate import RolloutSums, clusters_of, stack
from opd_probe.curves.intervals import ends
from opd_probe.curves.looks import level_of
from opd_probe.metrics.bounds import BOUNDS, NEEDS, state_bounds
from opd_probe.metrics.registry import UNIT_RANGES
from opd_probe.trace import Trace


def is_served(trace: Trace) -> bool:
    """Whether the teacher of a trace was behind HTTP, so that only a part of its distribution is known."""
    return (trace.provenance.get("teacher") or {}).get("source") == "served"


def bounds_row(trace: Trace, *, average: str = "token") -> dict[str, Any]:
    """Certified bounds of the means that a served teacher leaves unknown: see :mod:`opd_probe.metrics.bounds`.

    The mean over states of a bound is a bound of the mean, over the states where it is known.

    Returns:
        For each of :data:`opd_probe.metrics.bounds.BOUNDS` ``<name>``, ``<name>_lo``, ``<name>_hi`` and ``<name>_n``.
    """
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(BOUNDS))
    for block in trace.blocks(["token_id", *NEEDS]):
        sums.add(block["rollout"], stack(state_bounds(block, trace.vocabulary_size), BOUNDS))
    codes, n = clusters_of(trace)
    estimate = sums.clustered(codes, n, average)[0].estimate([UNIT_RANGES["nats"]] * len(BOUNDS))
    defined = sums.count[:, 0].sum(0)
    row: dict[str, Any] = {}
    for index, (name, value, lo, hi) in enumerate(zip(BOUNDS, *ends(estimate, level_of(trace)), strict=True)):
        row |= {name: float(value), f"{name}_lo": float(lo), f"{name}_hi": float(hi), f"{name}_n": int(defined[index])}
    return row
