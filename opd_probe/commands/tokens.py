"""``opd-probe tokens``: which tokens and states a trace's numbers come from, as JSON, tables and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.curves import diagnose, summarize
from opd_probe.curves.intervals import Floats
from opd_probe.curves.timeline import OverlapChange, overlap_change
from opd_probe.curves.tokens import (
    EXTREMES,
    Survey,
    disagreement_by_rollout,
    response_tokens,
    spread_choice,
    survey,
)
from opd_probe.errors import InputError
from opd_probe.jobs.plan import model_path
from opd_probe.metrics.context import special_ids
from opd_probe.models.decoding import Decoder
from opd_probe.options.request import DEFAULT_OUT
from opd_probe.options.settings import parse_options
from opd_probe.output import check_writable, output_path, write_bytes
from opd_probe.progress import Progress
from opd_probe.results.decoders import decoder_of
from opd_probe.results.responses import Responses, read_responses
from opd_probe.results.states import describe_state
from opd_probe.results.tables import json_row
from opd_probe.results.tokens_page import build_page
from opd_probe.runs.stored import Measured, find_trace, warn_of_states

MAX_ROLLOUTS = 12
TOP = 20
STATES = 8
PAGE_STATES = 12_000
"""States that a page shades at most, shared evenly between its responses: a page of a few megabytes."""

SUMMARY = (
    "reverse_kl", "sampled_reward", "overlap_ratio", "student_overlap_mass", "student_entropy", "teacher_entropy",
    "negative_reward_share",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What the command found.

    Attributes:
        document: everything in JSON types: ``trace``, ``missing``, ``summary``, ``tokens``, ``states``, ``rollouts``.
        files: the page.
    """

    document: dict[str, Any]
    files: tuple[Path, ...]


def tokens(
    trace: str,
    progress: Progress,
    *,
    options: Mapping[str, Any],
    against: str | None = None,
    tokenizer: str | None = None,
    rollouts: str | None = None,
    top: int = TOP,
    states: int = STATES,
    max_rollouts: int = MAX_ROLLOUTS,
    out: str | None = None,
) -> TokenReport:
    """Rank tokens and states of a trace, and write ``tokens.html``.

    Args:
        trace: a trace, or a directory that holds one.
        options: ``k`` and ``seed`` as for the other commands; k is lowered to the K of a shallower trace unless given.
        against: an earlier trace; then also what enters and leaves the overlap from it to ``trace``.
        tokenizer: path or hub id; None: what lies beside the checkpoint that the trace names.
        rollouts: the file that was replayed, for prompts and masked tokens; None: the samples beside the trace, if any.
        top, states, max_rollouts: tokens per list, extreme states per kind, responses on the page.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    directory = output_path(out or DEFAULT_OUT)
    check_writable(directory)
    given = parse_options(options)
    measured = find_trace(trace, given, what="tokens TRACE")
    earlier = None if against is None else find_trace(against, given, what="--against")
    warn_of_states([measured, *([] if earlier is None else [earlier])])
    settings = measured.settings
    stored = measured.trace
    depth = min(one.trace.K for one in (measured, earlier) if one is not None)
    k = settings.k if given.k is not None else min(settings.k, depth)
    missing: list[str] = []
    decoder = decoder_of(measured.trace, model_path("--tokenizer", tokenizer), missing)
    measure, apart = disagreement_by_rollout(stored)
    chosen = spread_choice(apart, max_rollouts)
    if not chosen and stored.n_states:
        raise InputError(
            f"tokens {trace}: neither a reverse KL nor log-probs of the sampled tokens in the trace; expected one of "
            "them, by which rollouts are chosen"
        )
    if not chosen:
        raise InputError(f"tokens {trace}: the trace has no state; expected at least one rollout with a response")
    room = max(1, PAGE_STATES // len(chosen))
    progress.begin("read the trace")
    found = survey(stored, k, n_extremes=states, rollouts=dict.fromkeys(chosen, room), progress=progress.update)
    if found.n_unknown:
        missing.append(
            f"Reverse KL: the teacher's probability is unknown at {found.n_unknown:,} entries of the student's lists, "
            "as with a served teacher; they are left out of the tokens' contributions to it."
        )
    if stored.provenance.get("teacher_prompt"):
        missing.append("The teacher's prompts: those here are the student's, and the teacher read others.")
    change = None if earlier is None else overlap_change(earlier.trace, stored, k)
    shown = sorted({int(row["rollout"]) for rows in found.extremes.values() for row in rows} | set(chosen))
    responses = read_responses(stored, response_tokens(stored, shown), rollouts, decoder, missing)
    document = {
        "trace": _names(measured) | {"k": k, "K": stored.K, "n_states": stored.n_states, "tokenizer": decoder.name},
        "against": None if earlier is None else _names(earlier),
        "missing": missing,
        "summary": _summary(measured, k, missing),
        "tokens": _token_lists(found, change, decoder, top),
        "states": _states(found, responses, decoder, k),
        "rollouts": [responses.rollout_id(index) for index in chosen],
    }
    html = build_page(document, found, chosen, (measure, apart), responses, decoder, room, change)
    file = write_bytes(directory / "tokens.html", html.encode())
    return TokenReport(document, (file,))


def _names(measured: Measured) -> dict[str, Any]:
    return {
        "path": str(measured.trace.path),
        **measured.key,
        **measured.labels,
    }


def _summary(measured: Measured, k: int, missing: list[str]) -> dict[str, Any]:
    trace, seed = measured.trace, measured.settings.seed
    row = summarize(trace, k, metrics=SUMMARY, seed=seed) | diagnose(trace, seed=seed)
    if special_ids(trace) is None:
        missing.append("Special-token gap: no tokenizer says which tokens are special; give --tokenizer PATH.")
    return json_row(row)


def _token_lists(
    found: Survey, change: OverlapChange | None, decoder: Decoder, top: int
) -> dict[str, list[dict[str, Any]]]:
    counts = found.counts
    n = found.n_states
    kl, infinite = counts.of("kl"), counts.of("kl_infinite", len(counts.of("kl")))
    sampled = counts.of("sampled")
    reward = counts.of("reward", len(sampled))
    total = found.reverse_kl
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(sampled > 0, reward / sampled, np.nan)

    def ranked(order: Floats, row: Any) -> list[dict[str, Any]]:
        places = np.argsort(-order, kind="stable")[:top]
        return [
            {"token_id": int(token), "token": decoder.label(int(token)), **row(int(token))}
            for token in places
            if order[token] > 0
        ]

    held = counts.of("kl_states", len(kl))
    lists = {
        "reverse_kl": ranked(
            np.where(infinite > 0, np.inf, kl),
            lambda v: {
                "contribution": kl[v] / n,
                "share": kl[v] / total if total > 0 else None,
                "n_states": int(held[v]),
                "n_infinite": int(infinite[v]),
            },
        )
    }
    for name, sign in (("lowest_reward", -1.0), ("highest_reward", 1.0)):
        lists[name] = ranked(
            sign * reward,
            lambda v: {"contribution": reward[v] / n, "mean": float(mean[v]), "n_states": int(sampled[v])},
        )
    if change is not None:
        for name, values in (("entering", change.entered), ("leaving", change.left)):
            lists[name] = ranked(values, _change_row(change, values))
    return {name: [json_row(row) for row in rows] for name, rows in lists.items()}


def _change_row(change: OverlapChange, values: Floats) -> Any:
    """Rates per 1,000 states; where states are paired also the number of states and the net change."""

    def row(token: int) -> dict[str, Any]:
        if not change.paired:
            return {"per_1000_states": 1000 * values[token]}
        net = change.entered[token] - change.left[token]
        n = max(change.n[1], 1)
        return {"per_1000_states": 1000 * values[token] / n, "n_states": int(values[token]), "net": int(net)}

    return row


def _states(found: Survey, responses: Responses, decoder: Decoder, k: int) -> dict[str, list[dict[str, Any]]]:
    return {kind: [describe_state(row, responses, decoder, k) for row in found.extremes[kind]] for kind in EXTREMES}


def table_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The token lists of a document below one another: ``list``, ``rank``, and each list's own columns."""
    lists: Mapping[str, Sequence[Mapping[str, Any]]] = document["tokens"]
    return [{"list": name, "rank": rank, **row} for name, rows in lists.items() for rank, row in enumerate(rows, 1)]
