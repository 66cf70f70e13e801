"""Metrics per state, from a stored trace: no model, no second pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_probe.errors import InputError, OpdProbeWarning, TraceError
from opd_probe.metrics.context import context_columns
from opd_probe.metrics.registry import METRICS
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

BLOCK_STATES = 8_192
"""States per block: its intermediates (about forty float64 [n, k] arrays) stay in the tens of MB."""

_FREED_KEPT = 32 * 2**20 - 2**16


def keep_freed_memory() -> None:
    """Have the allocator keep what a block frees for the next block.

    glibc hands freed memory back to the system beyond a threshold, and faulting it in again for each block costs as
    much as the arithmetic. The threshold follows the largest array that was ever freed, up to 32 MiB; other allocators
    do not mind.
    """
    np.empty(_FREED_KEPT, dtype=np.uint8)


def check_k(trace: Trace, k: int) -> int:
    """``k`` when the trace can answer for it.

    Raises:
        InputError: k is not a positive whole number, or beyond the shared vocabulary.
        TraceError: k is beyond the K of the trace.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k = {k!r}: expected a whole number from 1 to {trace.K}")
    if k > trace.vocabulary_size:
        raise InputError(f"k = {k}: beyond the shared vocabulary of {trace.vocabulary_size} tokens; lower --k")
    if k > trace.K:
        raise TraceError(f"k = {k}: this trace holds the top {trace.K} only; replay with --trace-k {k} or more")
    if k == 1:
        names = ", ".join(name for name, metric in METRICS.items() if metric.trivial_at_one)
        warnings.warn(f"k = 1: renormalised on one token, {names} are always 0", OpdProbeWarning, stacklevel=3)
    return int(k)


def metric_names(names: Sequence[str] | None = None) -> tuple[str, ...]:
    """``names`` if all of them are registered, or every registered name.

    Raises:
        InputError: a name is not registered.
    """
    if names is None:
        return tuple(METRICS)
    for name in names:
        if name not in METRICS:
            raise InputError(f"metric {name!r}: unknown; known are {', '.join(METRICS)}")
    return tuple(names)


def metric_blocks(
    trace: Trace, k: int, names: Sequence[str], size: int = BLOCK_STATES
) -> Iterator[tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]]:
    """Yield (stored columns, metrics by name) for consecutive blocks of states. Memory is bounded by the block.

    A metric whose inputs the trace lacks is all NaN.
    """
    there = set(trace.columns)
    wanted = {"position", "token_id"}.union(*(METRICS[name].needs for name in names)) & there
    keep_freed_memory()
    context = context_columns(trace, {need for name in names for need in METRICS[name].needs})
    for block in trace.blocks([name for name in trace.columns if name in wanted], size):
        block |= context(block)
        yield block, block_metrics(block, k, names)


def block_metrics(
    block: Mapping[str, np.ndarray[Any, Any]], k: int, names: Sequence[str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Metrics of one block of states: name -> float64 [n]."""
    view = TopView(block, k)
    return {name: METRICS[name].function(view) for name in names}


def state_metrics(trace: Trace, k: int = 16, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Every metric at every state.

    Args:
        trace: what a replay or :func:`opd_probe.read_trace` gave.
        k: the size of both top sets, at most the K of the trace.
        metrics: names from :data:`opd_probe.metrics.registry.METRICS`; None for all of them.

    Returns:
        One row per state in the order of the trace: ``rollout_id``, ``prompt_id``, ``position``, ``token_id``,
        and one float64 column per metric. A quantity that is undefined or unknown at a state is NaN.

    Raises:
        InputError, TraceError: as :func:`check_k`, or an unknown metric.
    """
    import pandas as pd

    k = check_k(trace, k)
    names = metric_names(metrics)
    parts: dict[str, list[Any]] = {name: [] for name in ("rollout", "position", "token_id", *names)}
    for block, values in metric_blocks(trace, k, names):
        for name in ("rollout", "position", "token_id"):
            parts[name].append(block[name])
        for name in names:
            parts[name].append(values[name])
    columns = {name: np.concatenate(p) if p else np.empty(0) for name, p in parts.items()}
    rollout = columns.pop("rollout").astype(np.int64)
    identity = {
        name: np.asarray(trace.rollouts.column(name).to_pylist(), dtype=object)[rollout]
        for name in ("rollout_id", "prompt_id")
    }
    return pd.DataFrame({**identity, **columns})
