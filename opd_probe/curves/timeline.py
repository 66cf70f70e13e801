"""Which tokens enter and leave the overlap S_p ∩ S_q from the first checkpoint to each later one.

One pass over all traces, block by block; beside the blocks there are a few float64 arrays as long as the vocabulary for
each trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Floats
from opd_probe.curves.tokens import TokenCounts
from opd_probe.metrics.overlap import IDS
from opd_probe.metrics.states import BLOCK_STATES, check_k
from opd_probe.metrics.view import Bools, TopView, shared_ids
from opd_probe.trace import Trace

Block = Mapping[str, NDArray[Any]]

_NOTHING = (-2, -3)
"""Equal to no id, and not to each other: what stands at the ranks of two lists that are not in their overlap."""


@dataclass(frozen=True)
class OverlapTimeline:
    """How often each token is in the overlap at each of T checkpoints, and what changed there since the first.

    Attributes:
        paired: whether all traces have the same states. Then ``entered`` and ``left`` count states where the token is
            in the overlap of the later trace alone, or of the first alone, and the masses are sums over these states.
            Otherwise the states differ; then they are the two sides of the change of the token's rate, in states per
            state of a trace, and of its mass per state.
        n: states of each trace, [T].
        present: [T, V], states where the token is in the overlap.
        mass: [T, V], the student's probability of the token, summed over these states.
        entered, left: [T, V] since the first trace; its own row is 0.
        entered_mass: [T, V], the student's probability of the token there, in the later trace.
        left_mass: [T, V], what it was in the first trace.
    """

    paired: bool
    n: tuple[int, ...]
    present: Floats
    mass: Floats
    entered: Floats
    left: Floats
    entered_mass: Floats
    left_mass: Floats


@dataclass(frozen=True)
class OverlapChange:
    """How often each token enters and leaves the overlap set between two traces.

    Attributes:
        paired: whether both traces have the same states. Then ``entered`` and ``left`` are numbers of states where the
            token is in the overlap of the later trace alone, or of the earlier alone. Otherwise the states differ, and
            they are the two sides of the change of the token's rate, in states per state of a trace.
        n: states of the earlier and of the later trace.
    """

    paired: bool
    entered: Floats
    left: Floats
    n: tuple[int, int]


def overlap_change(earlier: Trace, later: Trace, k: int) -> OverlapChange:
    """What enters and leaves S_p ∩ S_q from one trace to another.

    Raises:
        InputError, TraceError: a k that one of the traces cannot answer for.
    """
    found = overlap_timeline([earlier, later], k)
    return OverlapChange(found.paired, found.entered[1], found.left[1], (found.n[0], found.n[1]))


def overlap_timeline(traces: Sequence[Trace], k: int) -> OverlapTimeline:
    """What enters and leaves S_p ∩ S_q from the first of some traces to each later one.

    Args:
        traces: of one run and teacher in the order of their steps, at least one.

    Raises:
        InputError, TraceError: a k that one of the traces cannot answer for.
    """
    for trace in traces:
        check_k(trace, k)
    n = tuple(trace.n_states for trace in traces)
    counts = TokenCounts()
    paired = all(same_states(traces[0], other) for other in traces[1:])
    if paired:
        for blocks in _together(traces, IDS):
            overlaps = [_Overlap(block, k) for block in blocks]
            for place, overlap in enumerate(overlaps):
                _count(counts, place, overlap, overlaps[0])
    else:
        for place, trace in enumerate(traces):
            for block in trace.blocks(IDS, BLOCK_STATES):
                _count(counts, place, _Overlap(block, k), None)
    size = max(counts.sizes(), default=0)

    def table(name: str) -> Floats:
        return np.stack([counts.of(f"{name} {place}", size) for place in range(len(traces))])

    names = ("entered", "left", "entered_mass", "left_mass")
    present, mass = table("present"), table("mass")
    if paired:
        return OverlapTimeline(paired, n, present, mass, *(table(name) for name in names))
    states = np.maximum(n, 1)[:, None]
    changes = [rate - rate[0] for rate in (present / states, mass / states)]
    sides = [np.maximum(sign * change, 0.0) for change in changes for sign in (1.0, -1.0)]
    return OverlapTimeline(paired, n, present, mass, *sides)


class _Overlap:
    """The overlap at the states of a block: ids and probabilities of the student's top k, and which are in it."""

    def __init__(self, block: Block, k: int) -> None:
        view = TopView(block, k)
        self.shared: Bools = view.in_overlap
        self.ids = np.where(self.shared, block["student_top_ids"][:, :k], _NOTHING[0])
        self.p = view.student_probabilities

    def less(self, other: _Overlap) -> Bools:
        """Which ranks hold a token that is not in the overlap of the other at the same state, [n, k]."""
        theirs = np.where(other.shared, other.ids, _NOTHING[1])
        return self.shared & ~shared_ids(self.ids, theirs)[0]


def _count(counts: TokenCounts, place: int, overlap: _Overlap, first: _Overlap | None) -> None:
    chosen = {"present": (overlap, overlap.shared)}
    if first is not None:
        chosen |= {"entered": (overlap, overlap.less(first)), "left": (first, first.less(overlap))}
    for name, (of, mask) in chosen.items():
        counts.add(f"{name} {place}", of.ids[mask])
        counts.add(f"mass {place}" if name == "present" else f"{name}_mass {place}", of.ids[mask], of.p[mask])


def same_states(a: Trace, b: Trace) -> bool:
    """Whether two traces have the same rollouts with the same tokens at the same positions."""
    for name in ("rollout_id", "n_states"):
        if a.rollouts.column(name).to_pylist() != b.rollouts.column(name).to_pylist():
            return False
    names = ["position", "token_id"]
    return all(all(np.array_equal(x[name], y[name]) for name in names) for x, y in _together([a, b], names))


def _together(traces: Sequence[Trace], columns: Sequence[str]) -> Iterator[list[Block]]:
    """Blocks of the same rows of traces with equally many, whatever the row groups of their files."""
    streams = [trace.blocks(columns, BLOCK_STATES) for trace in traces]
    held: list[dict[str, NDArray[Any]]] = [{} for _ in traces]
    while True:
        for side, stream in enumerate(streams):
            if not held[side] or not len(held[side]["rollout"]):
                held[side] = next(stream, {})
        if not all(held):
            return
        n = min(len(block["rollout"]) for block in held)
        yield [{name: values[:n] for name, values in block.items()} for block in held]
        held = [{name: values[n:] for name, values in block.items()} for block in held]
