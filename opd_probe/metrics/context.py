"""What a state inherits from its rollout and its trace, as columns that metrics may ask for beside the stored ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.trace import Trace

Floats = NDArray[np.float64]

CORRECT_FROM = 0.5
"""A rollout counts as correct when its score is at least this: graders write 0/1 or −1/1."""

CONTEXT = ("correct", "special", "log_vocabulary")
"""``correct``: 1 or 0 as the state's rollout is, NaN without a score. ``special``: 1 where the sampled token is a
special token, NaN when the trace does not know which are. ``log_vocabulary``: log of the shared vocabulary's size."""

Block = Mapping[str, NDArray[Any]]


def correctness(trace: Trace) -> Floats:
    """[n_rollouts]: 1 for a correct rollout, 0 for an incorrect one, NaN without a score."""
    values = trace.rollouts.column("score").to_pylist()
    score = np.array([np.nan if value is None else float(value) for value in values])
    return np.where(np.isnan(score), np.nan, (score >= CORRECT_FROM).astype(float))


def special_ids(trace: Trace) -> list[int] | None:
    """The ids of special tokens that the trace's provenance names, or None when it names none."""
    found = trace.provenance.get("vocabulary", {}).get("special_ids")
    return None if found is None else [int(token) for token in found]


def with_special_ids(trace: Trace, ids: Iterable[int]) -> Trace:
    """The same trace, knowing its special tokens; for traces whose provenance does not name them."""
    trace.provenance["vocabulary"] = {**trace.provenance["vocabulary"], "special_ids": sorted(set(ids))}
    return trace


def context_columns(trace: Trace, names: Iterable[str]) -> Callable[[Block], dict[str, NDArray[Any]]]:
    """A function from a block (with ``token_id`` and ``rollout``) to those of its :data:`CONTEXT` columns."""
    wanted = set(names) & set(CONTEXT)
    correct = correctness(trace) if "correct" in wanted else np.empty(0)
    special = special_ids(trace)
    log_size = math.log(trace.vocabulary_size)

    def columns(block: Block) -> dict[str, NDArray[Any]]:
        shape = block["token_id"].shape
        found: dict[str, NDArray[Any]] = {}
        if "correct" in wanted:
            found["correct"] = correct[block["rollout"]]
        if "special" in wanted:
            found["special"] = np.full(shape, np.nan) if special is None else np.isin(block["token_id"], special)
        if "log_vocabulary" in wanted:
            found["log_vocabulary"] = np.broadcast_to(np.float64(log_size), shape)
        return found

    return columns
