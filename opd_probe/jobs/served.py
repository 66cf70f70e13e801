"""Served teachers in a replay: how they are found, the two passes, and what is said of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.engine.replay import Progress
from opd_probe.engine.scoring import Columns
from opd_probe.engine.served import TOLD, ServedReplay, refuse_temperature
from opd_probe.engine.settings import ReplaySettings
from opd_probe.errors import InputError, OpdProbeWarning, TraceError
from opd_probe.models.served.endpoint import Endpoint, is_url, parse_endpoint
from opd_probe.models.served.model import ServedModel, connect, local_roots
from opd_probe.models.vocabulary import load_tokenizer, tokenizer_digest
from opd_probe.texts import read_json
from opd_probe.trace import Trace, TraceSpool, read_trace

ANSWERS = "teacher's answers"
"""The part of a trace's fingerprint that holds what the server answered to a fixed sequence."""

Rows = slice | NDArray[np.int64]

FOREIGN_WARNING = 0.01
"""Share of the told top tokens that the student does not share above which a replay warns."""


def served_model(source: Any, tokenizer: Any = None) -> Any:
    """The served model that a URL or an endpoint names; anything else as it is.

    Args:
        tokenizer: the served model's, as a path, a hub id or a tokenizer; None: the one beside its weights when these
            are on this machine, else it is unknown.

    Raises:
        ServerError, InputError: see :func:`opd_probe.models.served.model.connect`.
    """
    if is_url(source):
        source = parse_endpoint(source)
    if not isinstance(source, Endpoint):
        return source
    found = connect(source, load_tokenizer(tokenizer, required=True) if tokenizer is not None else None)
    for place in local_roots(found):
        found.tokenizer = found.tokenizer or load_tokenizer(place, required=False)
    return found


def settings_for(teacher: ServedModel, settings: ReplaySettings, least: int = 1) -> ReplaySettings:
    """The settings with K lowered to what the server tells, with a warning.

    Args:
        least: the smallest K that will do.

    Raises:
        InputError: it tells less than ``least``, or the temperature is not 1.
    """
    refuse_temperature(settings.temperature)
    first = not teacher.asked(settings.k)
    limit = teacher.allowed(settings.k)
    advice = "start the server with a higher limit (vLLM: --max-logprobs)"
    if limit < least:
        raise InputError(f"k = {least}: {teacher.name} tells the top {limit} at most; lower --k, or {advice}")
    if limit < settings.k and first:
        warnings.warn(
            f"{teacher.name} tells the top {limit} at most, asked for are {settings.k}: the trace holds the top "
            f"{limit}; for more {advice}",
            OpdProbeWarning,
            stacklevel=3,
        )
    return replace(settings, k=limit)


def tokenizer_of_served(teacher: ServedModel) -> str | None:
    """A digest of the tokenizer that is known of a served model; None: none is."""
    return None if teacher.tokenizer is None else tokenizer_digest(teacher.tokenizer)


def served_identity(teacher: ServedModel, path: Path | None) -> dict[str, Any]:
    """What a stored trace of a served teacher must agree on: who its server says it is, and what it answers to a fixed
    sequence. Those are the answers of a trace that is there already, of its unfinished work or of another checkpoint's
    beside it, where the teacher may have the weights of then.

    Args:
        path: of the trace.

    Raises:
        ServerError: as of :meth:`opd_probe.models.served.model.ServedModel.recognised`.
    """
    return {"teacher weights": teacher.digest, ANSWERS: teacher.recognised(_known_answers(path))}


def _known_answers(path: Path | None) -> Iterator[Any]:
    if path is None:
        return
    with suppress(OSError, ValueError):
        yield read_json(answers_path(path))
    beside = sorted(path.parent.glob("*.parquet"), key=lambda file: file != path)
    for file in beside:
        with suppress(TraceError):
            found = read_trace(file, verify=False).provenance.get("fingerprint", {})
            if ANSWERS in found:
                yield found[ANSWERS]


def answers_path(path: Path) -> Path:
    """Where the unfinished work on a trace keeps what the teacher answered."""
    return path.with_name(f".{path.name}.partial") / "answers.json"


def told_beside(path: Path | None, fingerprint: Mapping[str, Any], k: int, size: int) -> Trace | None:
    """A finished trace of the same folder for which the teacher was asked the same: that of another checkpoint; the one
    with the most states, where some are of replays that stopped.

    Args:
        path, fingerprint: of the trace that is to be made.
        size: of the shared vocabulary, on which the teacher's lists are kept.
    """
    held: Trace | None = None
    for file in sorted(path.parent.glob("*.parquet")) if path is not None else []:
        with suppress(TraceError):
            found = read_trace(file)
            before = found.provenance.get("fingerprint", {})
            same = all(before.get(name) == value for name, value in fingerprint.items() if name != "student weights")
            if file != path and same and k <= found.K and found.vocabulary_size == size:
                held = found if held is None or found.n_states > held.n_states else held
    return held


def served_states(
    engine: ServedReplay,
    spool: TraceSpool,
    progress: Progress | None,
    told: Trace | None = None,
    units: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[int, Columns]]:
    """Both passes: the server's answers, kept in the spool as they come, then the student's.

    Args:
        units: as for :meth:`opd_probe.engine.replay.Replay.states`; both passes over one, then over the next.
        progress: called with (done, in all), every state counted once for each pass.
        told: a trace that holds the answers already, see :func:`told_beside`.
    """
    total = sum(engine.state_counts)

    passed = [0, 0]

    def count(which: int) -> Progress:
        def counted(done: int, _: int) -> None:
            passed[which] = done
            if progress is not None:
                progress(sum(passed), 2 * total)

        return counted

    if told is not None:
        place = {rollout.id: index for index, rollout in enumerate(engine.rollouts)}
        held = [place.get(name, -1) for name in told.rollouts.column("rollout_id").to_pylist()]
        counts = np.diff(spool.offsets)
        if min(held, default=-1) >= 0 and np.array_equal(np.diff(told.rollout_offsets), counts[held]):
            spool.put_answers(held, told.blocks(TOLD))
    for unit in [None] if units is None else units:
        for index, values in engine.answers(spool.answered, count(0), unit):
            spool.put_answer(index, values)
        yield from engine.states(spool.done, lambda rollout: spool.answer(rollout, TOLD), count(1), unit)


def told_warnings(spool: TraceSpool, engine: ServedReplay, rows: Rows = slice(None)) -> list[str]:
    """What is to be said of states that the server told no list of, and of ids that the student does not share: its
    tokenizer may be another.

    Args:
        rows: of the states that were replayed.
    """
    told, name = spool.arrays["teacher_top_logprobs"][rows], engine.teacher.name
    shared = np.isin(spool.arrays["token_id"][rows], engine.shared_ids)  # of another token nothing was told in any case
    unknown = shared & np.isnan(told).all(1) & np.isnan(spool.arrays["teacher_logprob"][rows])
    found = []
    if unknown.any():
        state = int(np.arange(len(spool.arrays["token_id"]))[rows][np.flatnonzero(unknown)[0]])
        found.append(
            f"{int(unknown.sum()):,} of {len(told):,} states are unknown: {name} told no list of log-probabilities of "
            f"them, asked twice; the first is {engine.place_of(state)}"
        )
    foreign = float(np.mean(np.isnan(told[~unknown]))) if told[~unknown].size else 0.0
    if foreign > FOREIGN_WARNING:
        found.append(
            f"{foreign:.1%} of the top tokens that {name} tells are not among the ids that the student shares with it; "
            "states whose top k they leave incomplete are null: does the server use the student's tokenizer?"
        )
    return found
