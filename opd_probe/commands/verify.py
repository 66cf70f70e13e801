"""``opd-probe verify``: whether a trace's bytes are whole, and whether its models still say what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import MissingError
from opd_probe.jobs.verifying import SIDES, Found, find_models, recomputed, rollouts_of, sampled_states
from opd_probe.options.naming import user_path
from opd_probe.progress import Progress
from opd_probe.results.responses import beside
from opd_probe.runs.stored import warn_of
from opd_probe.stats.rounding import rerun_tolerance
from opd_probe.trace import Trace, read_trace
from opd_probe.trace.table import is_sealed

STATES = 64

RELATIVE = 1e-5
"""The share of a value that it may differ by besides: a log-probability of −50 has fewer digits behind the point."""

_TOLD = ("path", "url", "model", "dtype", "device", "attention", "quantisation")

SHOWN = 5
"""Differing values that are named."""

Values = NDArray[Any]


def verify(
    trace: str,
    progress: Progress,
    *,
    states: int = STATES,
    seed: int = 0,
    rollouts: str | None = None,
    student: str | None = None,
    teacher: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Compare a trace with its checksums, and a sample of its states with what its models say now.

    Args:
        states: how many are computed again; 0: none, the checksums alone.
        rollouts: the file that was replayed; None: what the trace says, or the samples beside it.
        student, teacher: where a model is, in place of where it was.

    Returns:
        JSON types. ``verdict`` is ``agrees``, ``differs``, or ``checksums alone`` where models or rollouts are not
        there, as ``missing`` says.

    Raises:
        OpdProbeError: bad input, in one line; among it a trace whose checksums do not agree.
    """
    stored = read_trace(trace)
    for _ in stored.blocks(stored.columns):  # every page with its checksum
        pass
    warn_of(stored)
    said: dict[str, Any] = {
        "path": str(trace),
        "verdict": "checksums alone",
        "checksums": "agree" if is_sealed(Path(trace)) else "none are stored, as in early traces; it can be read",
        "made_by": made_by(stored),
        "states": 0,
        "missing": [],
    }
    if states and stored.n_states:
        progress.begin("load the models")
        found = find_models(stored, {"student": student, "teacher": teacher}, device)
        said["missing"] += [f"{side}: {reason}" for side, reason in found.missing.items()]
        said["models"] = {side: _state_of(side, found) for side in SIDES}
        _compare(stored, found, sampled_states(stored, states, seed), rollouts, said, progress)
    return said


def made_by(trace: Trace) -> dict[str, Any]:
    """What made a trace, as far as it says: versions, command line, settings, devices and types."""
    provenance = trace.provenance
    stated = provenance.get("made_by") or {}
    sides = {side: provenance.get(side) or {} for side in SIDES}
    return {
        "software": provenance.get("software") or {},
        "command": stated.get("command"),
        "settings": stated.get("settings"),
        "rollouts": stated.get("rollouts"),
        **{side: {name: one[name] for name in _TOLD if one.get(name) is not None} for side, one in sides.items()},
    }


def _state_of(side: str, found: Found) -> str:
    if side in found.missing:
        return "not there"
    return "other weights than then" if side in found.changed else "there"


def _compare(
    trace: Trace, found: Found, rows: NDArray[np.int64], given: str | None, said: dict[str, Any], progress: Progress
) -> None:
    """Put what the states say into ``said``."""
    if "student" not in found.models:
        return
    place = _rollouts(trace, given)
    if place is None:
        said["missing"].append("rollouts: a trace does not hold prompts; give what was replayed, --rollouts FILE")
        return
    held = rollouts_of(trace, place, found.models["student"])
    progress.begin(f"compute {len(rows)} states again")
    fresh, lacking = recomputed(trace, held, found, rows, progress.update)
    said["missing"] += lacking
    if not fresh:
        return
    tolerance = tolerance_of(trace)
    before = {name: trace.column(name)[rows] for name in fresh if name in trace.columns}
    worst, wrong = differences(before, fresh, tolerance)
    index, positions = trace.rollout_index()[rows], trace.column("position")[rows]
    ids = trace.rollouts.column("rollout_id").to_pylist()
    differing = [
        {"rollout": ids[index[at]], "position": int(positions[at]), "columns": [n for n in wrong if wrong[n][at]]}
        for at in np.flatnonzero(np.any(list(wrong.values()), axis=0)).tolist()
    ]
    said |= {
        "verdict": "differs" if differing or found.changed else "agrees",
        "states": len(rows),
        "tolerance": tolerance,
        "largest_difference": worst,
        "differing_states": len(differing),
        "differing": differing[:SHOWN],
    }


def _rollouts(trace: Trace, given: str | None) -> Path | None:
    """The file that was replayed: as given, as the trace says, or the samples beside it.

    Raises:
        MissingError: the given one is not there.
    """
    if given is not None:
        place = user_path(given)
        if not place.exists():
            raise MissingError(f"--rollouts {given}: no such file")
        return place
    stated = (trace.provenance.get("made_by") or {}).get("rollouts")
    if isinstance(stated, str) and Path(stated).exists():
        return Path(stated)
    return beside(trace)


def tolerance_of(trace: Trace) -> float:
    """Nats that rounding alone may change a value by: of the coarser of the two models."""
    types = [str((trace.provenance.get(side) or {}).get("dtype")) for side in SIDES]
    reduced = (trace.provenance.get("fingerprint") or {}).get("matmul precision")
    return rerun_tolerance(types, reduced=reduced is not None)


def differences(
    before: dict[str, Values], fresh: dict[str, Values], tolerance: float
) -> tuple[dict[str, float | None], dict[str, NDArray[np.bool_]]]:
    """The largest difference of each column, and at which states a value differs by more than rounding explains.

    Lists of ids are compared as sets: an id at the end of a list may give way to one of the same probability.
    """
    worst: dict[str, float | None] = {}
    wrong: dict[str, NDArray[np.bool_]] = {}
    for name, old in before.items():
        new = fresh[name]
        if name == "token_id":
            continue
        if name.endswith("_ids"):
            wrong[name] = _ids_differ(old, new, before[name.replace("_ids", "_logprobs")], tolerance)
            continue
        if "_at_" in name:  # beside ids, which may stand in another order
            ids = f"{'student' if name.startswith('teacher') else 'teacher'}_top_ids"
            old, new = _beside(old, before[ids], new, fresh[ids])
        off, bad = _apart(old, new, tolerance)
        worst[name] = off
        wrong[name] = np.asarray(bad.reshape(len(bad), -1).any(axis=1))
    return worst, wrong


def _apart(old: Values, new: Values, tolerance: float) -> tuple[float | None, Values]:
    one, other = old.astype(np.float64), new.astype(np.float64)
    both = np.isfinite(one) & np.isfinite(other)
    gap = np.abs(np.where(both, one, 0.0) - np.where(both, other, 0.0))
    alike = np.where(np.isnan(one), np.isnan(other), one == other)
    bad = np.where(both, gap > tolerance + RELATIVE * np.abs(np.where(both, one, 0.0)), ~alike).astype(bool)
    return (float(gap[both].max()) if both.any() else None), bad


def _beside(old: Values, old_ids: Values, new: Values, new_ids: Values) -> tuple[Values, Values]:
    """Values in the order of the old ids; NaN in both where an id is in one list alone."""
    found_old, found_new = np.full_like(old, np.nan), np.full_like(old, np.nan)
    for state in range(len(old)):
        where = {int(token): rank for rank, token in enumerate(new_ids[state]) if token >= 0}
        for rank, token in enumerate(old_ids[state].tolist()):
            if token in where:
                found_old[state, rank], found_new[state, rank] = old[state, rank], new[state, where[token]]
    return found_old, found_new


def _ids_differ(old: Values, new: Values, logprobs: Values, tolerance: float) -> NDArray[np.bool_]:
    """Whether an id is gone from a list that was not within rounding of its end."""
    wrong = np.zeros(len(old), dtype=bool)
    for state in range(len(old)):
        kept = set(new[state].tolist())
        there = np.asarray(old[state] >= 0)
        last = float(logprobs[state][there][-1]) if there.any() else 0.0
        for token, value in zip(old[state].tolist(), logprobs[state].tolist(), strict=True):
            if token not in kept and value - last > 2 * tolerance:
                wrong[state] = True
    return wrong
