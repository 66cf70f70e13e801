"""One row for one trace in a peer's definitions: means, intervals and counts, by its own names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.clusters import Sums, gather, units_of
from opd_probe.curves.intervals import Floats, ends, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.metrics.states import BLOCK_STATES, check_k, keep_freed_memory
from opd_probe.metrics.variants import CHUNK, Variant, parse_variant
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace
from opd_probe.trace.schema import TOP_COLUMNS


def summarize_variant(
    trace: Trace,
    variant: str | Variant,
    k: int = 16,
    *,
    average: str = "token",
    seed: int = 0,  # noqa: ARG001
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """What a peer would have logged of the states of a trace, so that its curves can be matched.

    Args:
        trace: what a replay or :func:`opd_probe.read_trace` gave; read once, block by block.
        variant: ``verl``, ``fireworks``, ``nemo-rl``, ``thunlp:union``, …, see
            :func:`opd_probe.metrics.variants.parse_variant`.
        k: the size of both top sets, at most the K of the trace.
        average, seed, resamples: as for :func:`opd_probe.summarize`.

    Returns:
        ``variant``, ``k``, ``n_prompts``, ``n_rollouts`` (with states), ``n_states``; and for each quantity, under the
        peer's name, its value, ``_lo`` and ``_hi`` (95 %, of means) and ``_n``: the states that it rests on, or the
        tokens of a mean over tokens. What is undefined or unknown is NaN.

    Raises:
        InputError, TraceError: a variant, a k or an average that cannot be used.
    """
    chosen = parse_variant(variant) if isinstance(variant, str) else variant
    k = check_k(trace, k)
    check_average(average)
    sums = _Weighted.of(trace, chosen, k)
    n_prompts = prompts_with_states(trace)
    if resamples:
        warn_few_prompts(n_prompts)
    level = level_of(trace, resamples)
    row: dict[str, Any] = {
        "variant": chosen.name,
        "k": k,
        "n_prompts": n_prompts,
        "n_rollouts": int((np.diff(trace.rollout_offsets) > 0).sum()),
        "n_states": trace.n_states,
    }
    row |= sums.row("", slice(None), average, level)
    if chosen.chunked:
        for chunk in range(sums.n_chunks):
            name = f"_chunk_{chunk * CHUNK}_{min((chunk + 1) * CHUNK, sums.length)}"
            row |= sums.row(name, slice(chunk, chunk + 1), average, level)
    return row


@dataclass
class _Weighted:
    """Numerators and weights of every quantity by rollout and chunk, and extremes."""

    trace: Trace
    variant: Variant
    length: int
    numerators: RolloutSums
    weights: RolloutSums
    extremes: dict[str, float]

    @classmethod
    def of(cls, trace: Trace, variant: Variant, k: int) -> _Weighted:
        """One pass over the trace."""
        length = 1 + max((int(b["position"].max()) for b in trace.blocks(["position"])), default=0)
        n_chunks = -(-length // CHUNK)
        shape = trace.rollouts.num_rows, n_chunks, len(variant.quantities)
        found = cls(trace, variant, length, RolloutSums.empty(*shape), RolloutSums.empty(*shape), {})
        for block, view in _views(trace, k):
            parts = variant.function(view)
            keys = block["rollout"] * n_chunks + block["position"] // CHUNK
            numerators = np.stack([parts[one.name][0] for one in variant.quantities]).T
            weights = np.stack([parts[one.name][1] for one in variant.quantities]).T
            known = ~np.isnan(numerators) & (weights > 0)
            found.numerators.add(keys, np.where(known, numerators, np.nan))
            found.weights.add(keys, np.where(known, weights, 0.0))
            untold = np.isnan(numerators) & (weights > 0) & view.untold_on_student[:, None]
            for column, one in enumerate(variant.quantities):
                if untold[:, column].any():  # a mean over the rest would be over states on which the models agree
                    found.numerators.forget(keys, column, untold[:, column])
                    found.extremes[one.name] = math.nan
                if one.reduce != "mean" and known[:, column].any():
                    found._extend(one.name, one.reduce, numerators[known[:, column], column])
        return found

    @property
    def n_chunks(self) -> int:
        """How many chunks of positions there are."""
        return -(-self.length // CHUNK)

    def _extend(self, name: str, reduce: str, values: Floats) -> None:
        pick = min if reduce == "min" else max
        new = float(values.min() if reduce == "min" else values.max())
        before = self.extremes.get(name, new)
        self.extremes[name] = before if math.isnan(before) else pick(before, new)

    def row(self, suffix: str, chunks: slice, average: str, level: float | None) -> dict[str, float]:
        """The quantities over some chunks; those without any state there are left out of a chunk."""
        sums = self.numerators
        total, plus, minus = (array[:, chunks].sum(1) for array in (sums.total, sums.plus, sums.minus))
        weight = self.weights.total[:, chunks].sum(1)
        counts = weight.sum(0)
        codes, n_clusters = clusters_of(self.trace)
        units = units_of(weight, codes, n_clusters)
        if average == "rollout":
            with np.errstate(invalid="ignore", divide="ignore"):
                total = np.where(weight > 0, total / weight, total)  # 0, or NaN
            weight, plus, minus = ((array > 0).astype(np.float64) for array in (weight, plus, minus))
        total, weight, plus, minus = (gather(array, codes, n_clusters) for array in (total, weight, plus, minus))
        gathered = Sums(total, weight, plus, minus, units)
        mean, lo, hi = ends(gathered.estimate([one.range for one in self.variant.quantities]), level)
        row: dict[str, float] = {}
        for column, one in enumerate(self.variant.quantities):
            name = f"{one.name}{suffix}"
            if suffix and not counts[column]:
                continue
            if one.reduce == "mean":
                row |= {name: float(mean[column]), f"{name}_lo": float(lo[column]), f"{name}_hi": float(hi[column])}
            else:
                row[name] = self.extremes.get(one.name, float("nan"))
            row[f"{name}_n"] = int(counts[column])
        return row


def _views(trace: Trace, k: int) -> Iterator[tuple[dict[str, Any], TopView]]:
    keep_freed_memory()
    starts, counts, at = trace.rollout_offsets[:-1], np.diff(trace.rollout_offsets), 0
    for block in trace.blocks(["position", "token_id", *TOP_COLUMNS], BLOCK_STATES):
        rows = np.arange(at, at + len(block["rollout"]))
        at += len(rows)
        block |= {"state_index": rows - starts[block["rollout"]], "state_count": counts[block["rollout"]]}
        yield block, TopView(block, k)
