"""What a report shows of single states: chosen responses of every checkpoint, their numbers, and some top lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Floats, Ints
from opd_probe.curves.tokens import EXTREMES, disagreement_by_rollout
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import BLOCK_STATES, block_metrics
from opd_probe.metrics.view import Bools
from opd_probe.results.courses import Judged
from opd_probe.results.states import QUANTITIES
from opd_probe.trace import Trace
from opd_probe.trace.schema import TOP_COLUMNS

Unit = tuple[str, int]
"""The n-th response to a prompt, of each checkpoint: what stands side by side."""

MAX_UNITS = 50
ROOM = 4_000
"""States of one response that are shown at most."""

PAGE_STATES = 600_000
LIST_STATES = 3_000
"""States that have both top lists on the page, at most, shared evenly between the responses."""


@dataclass(frozen=True)
class Shown:
    """The shown states of one trace, responses one below the other.

    Attributes:
        rollouts: their indices in the rollout table, each with the number of its unit.
        starts: int [r + 1], where each response begins among the states.
        positions, tokens: int [n].
        values: float32 [n] by quantity.
        lists: the states with lists, by their place among the n, and of each the stored columns cut at k.
        extremes: by kind, the value of each of these states under which the largest are meant; NaN where unknown.
    """

    rollouts: Sequence[tuple[int, int]]
    starts: Ints
    positions: Ints
    tokens: Ints
    values: Mapping[str, NDArray[np.float32]]
    lists: tuple[Ints, Mapping[str, NDArray[Any]]]
    extremes: Mapping[str, Floats]


def units_by_trace(one: Judged) -> list[dict[Unit, int]]:
    """For each trace its responses that have a state, by unit: their indices in the rollout table."""
    found = []
    for measured in one.traces:
        rollouts = measured.trace.rollouts
        counts: dict[str, int] = {}
        units: dict[Unit, int] = {}
        for index, (prompt, n) in enumerate(
            zip(rollouts.column("prompt_id").to_pylist(), rollouts.column("n_states").to_pylist(), strict=True)
        ):
            if n:
                counts[prompt] = counts.get(prompt, 0) + 1
                units[prompt, counts[prompt]] = index
        found.append(units)
    return found


def ranked_units(one: Judged, by_trace: Sequence[Mapping[Unit, int]]) -> tuple[list[Unit], Floats]:
    """The units that every checkpoint has, or those of the last one where there are none; and how far apart the models
    are in each at the last step."""
    last = by_trace[-1]
    units = [unit for unit in last if all(unit in known for known in by_trace)] or list(last)
    _, apart = disagreement_by_rollout(one.traces[-1].trace)
    values = np.array([apart[last[unit]] for unit in units], dtype=np.float64)
    if np.isnan(values).all():  # neither divergence nor log-probs are known: in the order of the file
        values = -np.arange(len(units), dtype=np.float64)
    return units, values


def states_of(one: Judged, by_trace: Sequence[Mapping[Unit, int]], units: Sequence[Unit]) -> int:
    """States that these units would show."""
    total = 0
    for measured, known in zip(one.traces, by_trace, strict=True):
        counts = np.diff(measured.trace.rollout_offsets)
        total += int(np.minimum(counts[[known[unit] for unit in units if unit in known]], ROOM).sum())
    return total


def shown_states(trace: Trace, known: Mapping[Unit, int], units: Sequence[Unit], k: int, listed: int) -> Shown:
    """The states of some units in one trace.

    Args:
        listed: states with lists for each response and kind of extreme.
    """
    wanted = np.zeros(trace.rollouts.num_rows, dtype=bool)
    wanted[[known[unit] for unit in units if unit in known]] = True
    needed = {"position", "token_id", *TOP_COLUMNS}.union(*(METRICS[name].needs for name in QUANTITIES))
    columns = [name for name in trace.columns if name in needed]
    kept: dict[str, list[NDArray[Any]]] = {name: [] for name in ("position", "token_id", "rollout", *QUANTITIES)}
    candidates: list[dict[str, NDArray[Any]]] = []
    done = count = 0
    for block in trace.blocks(columns, BLOCK_STATES):
        number = done + np.arange(len(block["rollout"])) - trace.rollout_offsets[block["rollout"]]
        rows = np.flatnonzero(wanted[block["rollout"]] & (number < ROOM))
        done += len(block["rollout"])
        if not len(rows):
            continue
        part = {name: values[rows] for name, values in block.items()}
        values = block_metrics(part, k, QUANTITIES)
        for name in ("position", "token_id", "rollout"):
            kept[name].append(part[name].astype(np.int64))
        for name in QUANTITIES:
            kept[name].append(values[name].astype(np.float32))
        chosen = _leading_of_kinds(part["rollout"], values, listed)
        lists = {name: (part[name][:, :k] if name in TOP_COLUMNS else part[name])[chosen] for name in part}
        kinds = {kind: sign * values[metric][chosen] for kind, (metric, sign) in EXTREMES.items()}
        candidates.append({**lists, **{f"extreme {kind}": v for kind, v in kinds.items()}, "at": count + chosen})
        count += len(rows)
    return _joined(trace, known, units, kept, candidates, listed)


def _joined(
    trace: Trace,
    known: Mapping[Unit, int],
    units: Sequence[Unit],
    kept: Mapping[str, Sequence[NDArray[Any]]],
    candidates: Sequence[Mapping[str, NDArray[Any]]],
    listed: int,
) -> Shown:
    """The parts of all blocks, in the order of the trace."""
    columns = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in kept.items()}
    numbers = {known[unit]: place for place, unit in enumerate(units) if unit in known}
    rollouts = [(index, numbers[index]) for index in sorted(numbers)]
    counts = [min(int(trace.rollout_offsets[i + 1] - trace.rollout_offsets[i]), ROOM) for i, _ in rollouts]
    both = {name: np.concatenate([part[name] for part in candidates]) for name in (candidates or [{}])[0]}
    extremes = {kind: both.pop(f"extreme {kind}", np.empty(0)) for kind in EXTREMES}
    at = both.pop("at", np.empty(0, dtype=np.int64))
    if len(at):  # a response that lies in two blocks has leading states in both
        again = np.zeros(len(at), dtype=bool)
        for values in extremes.values():
            again |= _leading(both["rollout"], values, listed)
        at, both = at[again], {name: values[again] for name, values in both.items()}
        extremes = {kind: values[again] for kind, values in extremes.items()}
    return Shown(
        rollouts,
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        columns["position"].astype(np.int64),
        columns["token_id"].astype(np.int64),
        {name: columns[name].astype(np.float32) for name in QUANTITIES},
        (at, both),
        extremes,
    )


def _leading_of_kinds(rollout: NDArray[Any], values: Mapping[str, Floats], n: int) -> Ints:
    """The rows that are among the n most extreme of their rollout, of any kind."""
    chosen = np.zeros(len(rollout), dtype=bool)
    for metric, sign in EXTREMES.values():
        chosen |= _leading(rollout, sign * values[metric], n)
    return np.flatnonzero(chosen)


def _leading(group: NDArray[Any], values: Floats, n: int) -> Bools:
    """Which rows have one of the n largest values of their group; earlier rows win ties, NaN is left out."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.lexsort((known, -values[known], group[known]))]
    found = np.zeros(len(values), dtype=bool)
    if len(order):
        sorted_groups = group[order]
        begins = np.flatnonzero(np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]]))
        rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
        found[order[rank < n]] = True
    return found
