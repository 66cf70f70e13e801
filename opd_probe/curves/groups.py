"""The states of a trace by a field of theirs: where they come from, whether the answer is right, which turn it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Ints
from opd_probe.errors import InputError, TraceError
from opd_probe.metrics.context import correctness
from opd_probe.plain import visible
from opd_probe.texts import parse_json
from opd_probe.trace import SelectedTrace, Trace

UNKNOWN = "(unknown)"
"""The group of what does not say."""

MOST = 64
"""Groups beyond which a field tells rollouts apart and does not group them."""

_OF_ROLLOUTS = ("finish_reason", "prompt_id", "step", "answer", "token_source", "sampling")
_VERDICTS = {1.0: "right", 0.0: "wrong"}


def groups(trace: Trace, field: str) -> dict[str, Trace]:
    """The parts of a trace in which a field has one value, each a trace of its own that every function takes.

    No state is in two parts, and all are in one: means of parts, weighted by their states, give the mean of the whole.

    Args:
        trace: what a replay or :func:`opd_probe.read_trace` gave; parts are read from it, not copied.
        field: of states, ``turn`` (from 1 on; runs of tokens that the student did not generate stand between turns)
            and ``tool_call`` (how many such runs the response has before the state); of rollouts ``correct``
            (``right`` and ``wrong``), ``finish_reason``, ``prompt_id``, ``step``, ``answer``, ``token_source``,
            ``sampling``, and any field that their file carried, such as ``data_source`` or ``extra_info.level``.

    Returns:
        Part by value, as text, in the order of numbers or of the alphabet; ``(unknown)``, where a rollout does not say,
        comes last. A rollout that was skipped is in the part of its value; of a field of states it is in none.

    Raises:
        InputError: no such field, one that no rollout has, or one with more than :data:`MOST` values.
    """
    if field in _OF_STATES:
        of_state = _OF_STATES[field](trace)
        found = np.unique(of_state).tolist()
        names, _ = _coded(found, f"--by {field}")  # ascending, as the numbers themselves
        return {name: _of_states(trace, of_state == value) for name, value in zip(names, found, strict=True)}
    values = _rollout_values(trace, field)
    names, codes = _coded(values, f"--by {field}")
    of_state = codes[trace.rollout_index()] if trace.n_states else codes[:0]
    return {name: SelectedTrace(trace, of_state == code, codes == code) for code, name in enumerate(names)}


def group_fields(trace: Trace) -> list[str]:
    """The fields by which a trace can be grouped: those of states, of its rollouts, and what their file carried."""
    known = [name for name in _OF_ROLLOUTS if any(value is not None for value in _column(trace, name))]
    correct = ["correct"] if not np.isnan(correctness(trace)).all() else []
    carried = dict.fromkeys(name for row in _carried(trace) for name in row)
    return [*_OF_STATES, *correct, *known, *(name for name in carried if name not in (*_OF_STATES, *_OF_ROLLOUTS))]


def turns(trace: Trace) -> Ints:
    """[n_states], from 1 on: the run of generated tokens that each state belongs to."""
    return _runs(trace) + 1


def tool_calls(trace: Trace) -> Ints:
    """[n_states]: the runs of tokens before each state, within its response, that the student did not generate."""
    starts = trace.rollout_offsets[:-1][np.diff(trace.rollout_offsets) > 0]
    first = trace.column("position")[starts] > 0  # a response may begin with them
    counts = np.diff(np.append(starts, trace.n_states))
    return _runs(trace) + np.repeat(first.astype(np.int64), counts)


_OF_STATES: dict[str, Callable[[Trace], Ints]] = {"turn": turns, "tool_call": tool_calls}


def _runs(trace: Trace) -> Ints:
    """[n_states]: gaps between positions, within the rollout, up to each state."""
    position = trace.column("position").astype(np.int64)
    if not len(position):
        return position
    starts = trace.rollout_offsets[:-1][np.diff(trace.rollout_offsets) > 0]
    gaps = np.concatenate([[0], (np.diff(position) != 1).astype(np.int64)])
    gaps[starts] = 0
    total = np.cumsum(gaps)
    runs: Ints = total - np.repeat(total[starts], np.diff(np.append(starts, len(position))))
    return runs


def _of_states(trace: Trace, states: NDArray[np.bool_]) -> Trace:
    """Of a field of states: the rollouts that have one of them."""
    rollouts = np.zeros(trace.rollouts.num_rows, dtype=bool)
    rollouts[trace.rollout_index()[states]] = True
    return SelectedTrace(trace, states, rollouts)


def _column(trace: Trace, name: str) -> list[Any]:
    table = trace.rollouts
    return table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows


def _carried(trace: Trace) -> list[dict[str, Any]]:
    """What the file of each rollout said of it beside what a trace has columns for."""
    found = []
    for text in _column(trace, "fields"):
        try:
            row = parse_json(text) if text else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise TraceError(f"trace {trace.path or 'in memory'}: the fields of its rollouts are no JSON objects")
        found.append({name: value for name, value in row.items() if not isinstance(value, (list, dict))})
    return found


def _rollout_values(trace: Trace, field: str) -> list[Any]:
    if field == "correct":
        values: list[Any] = [_VERDICTS.get(value) for value in correctness(trace).tolist()]
    elif field in _OF_ROLLOUTS:
        values = _column(trace, field)
    else:
        values = [row.get(field) for row in _carried(trace)]
    if all(value is None for value in values):
        kept = "fields" in trace.rollouts.column_names
        older = (
            ""
            if kept
            else "; of fields of its rollouts' file it holds none; give the command that made it again, which adds them"
        )
        raise InputError(
            f"--by {field}: no rollout of trace {trace.path or 'in memory'} has it; expected one of "
            f"{', '.join(group_fields(trace))}{older}"
        )
    return values


def _coded(values: Sequence[Any], what: str) -> tuple[list[str], Ints]:
    """The values as text in order, and the number of each one."""
    texts = [UNKNOWN if value is None else _text(value) for value in values]
    names = sorted(set(texts), key=_order)
    if len(names) > MOST:
        raise InputError(
            f"{what}: {len(names)} values, as {', '.join(names[:3])}; expected at most {MOST}, of a field that many "
            "rollouts share"
        )
    place = {name: code for code, name in enumerate(names)}
    return names, np.array([place[text] for text in texts], dtype=np.int64)


def _text(value: Any) -> str:
    return visible(value) if isinstance(value, str) else json.dumps(value)


def _order(name: str) -> tuple[bool, bool, float, str]:
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    numeric = math.isfinite(number)
    return name == UNKNOWN, not numeric, number if numeric else 0.0, name
