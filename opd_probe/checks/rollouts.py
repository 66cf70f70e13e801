"""Are the rollouts what the student sampled, can both models read them, and did they end?"""

from __future__ import annotations

import zlib

import numpy as np

from opd_probe.checks.evidence import Evidence, Skip, share
from opd_probe.checks.registry import Verdict, grade, register
from opd_probe.types import Rollout

TRUNCATED_LIMIT = 0.2
"""Share of truncated rollouts from which a fifth of the signal is of responses that nobody has seen end."""

TRUNCATED_COLLAPSE = 0.8
"""Share of truncated rollouts in a run that collapses; it goes on to 1."""

COMPRESSION = 10.0
"""τ: how far a repetitive tail compresses, in bytes over zlib bytes."""

REPETITIVE_LIMIT = 0.05
"""Share of repetitive rollouts that is worth a warning: healthy runs have none, collapsed ones 0.3 to 0.6."""


@register(
    "replay",
    measures="rollouts and states that both models read, and what a replay refuses",
    rule="fail: a rollout that a replay would refuse (an id that a model has no row for, an empty prompt), logits that "
    "are not finite, a server without an answer, or no state at all; warn: rollouts without a state",
    advice="sample with this student's tokenizer, drop the rollouts that are named, or check the checkpoint's weights",
    known_from="many trainers",
)
def replay(evidence: Evidence) -> Verdict:
    states = sum(len(columns["position"]) for columns in evidence.states.values())
    empty = {i for i in evidence.left_out if not _has_state(evidence, i)}
    refused = {i: why for i, why in evidence.left_out.items() if i not in empty and not _too_long(evidence, i)}
    values = {"n_rollouts": len(evidence.states), "n_states": states, "n_empty": len(empty), "n_refused": len(refused)}
    if refused:
        return Verdict(
            "fail", f"{len(refused)} of {len(evidence.rollouts)} rollouts; {next(iter(refused.values()))}", values
        )
    if not evidence.states:
        reason = evidence.missing.get("states", "no rollout is left")
        if evidence.vocabulary is None or len(empty) < len(evidence.left_out):
            raise Skip(reason if evidence.vocabulary is None else "every rollout is too long, see the line 'lengths'")
        return Verdict("fail", reason, values)
    figure = f"{len(evidence.states)} of {len(evidence.rollouts)} rollouts, {states:,} states"
    return Verdict("warn", f"{figure}; {len(empty)} have none", values) if empty else Verdict("ok", figure, values)


def _has_state(evidence: Evidence, index: int) -> bool:
    return bool(evidence.mask(index).any())


def _needed(evidence: Evidence, index: int) -> int:
    """Positions of a sequence: the last token is predicted and never read."""
    rollout = evidence.rollouts[index]
    return len(rollout.prompt_ids) + max(len(rollout.response_ids) - 1, 0)


def _too_long(evidence: Evidence, index: int) -> bool:
    limits = [side.max_positions for side in (evidence.student, evidence.teacher) if side.max_positions is not None]
    return any(_needed(evidence, index) > limit for limit in limits)


@register(
    "lengths",
    measures="positions of the longest prompt and response against those that both models were built for",
    rule="fail: a sequence that is longer than either allows; beyond, positions extrapolate silently, or a server cuts",
    advice="sample with a lower --max-new-tokens, or take a teacher with as many positions",
    known_from="many trainers",
)
def lengths(evidence: Evidence) -> Verdict:
    longest = max((_needed(evidence, index) for index in range(len(evidence.rollouts))), default=0)
    limits = evidence.student.max_positions, evidence.teacher.max_positions
    beyond = sum(_too_long(evidence, index) for index in range(len(evidence.rollouts)))
    values = {"longest": longest, "student_positions": limits[0], "teacher_positions": limits[1], "n_too_long": beyond}
    if limits == (None, None):
        raise Skip(f"neither model says how many positions it has; the longest sequence needs {longest:,}")
    known = [
        f"{limit:,} ({who})" for who, limit in zip(("student", "teacher"), limits, strict=True) if limit is not None
    ]
    figure = f"the longest sequence needs {longest:,} positions of {', '.join(known)}"
    return (
        Verdict("fail", f"{figure}; {beyond} rollouts need too many", values)
        if beyond
        else Verdict("ok", figure, values)
    )


@register(
    "token_source",
    measures="share of rollouts whose ids are text that was tokenised again",
    rule="warn: any; byte-level BPE does not round-trip and special tokens are stripped, so that these are not the "
    "states that the student visited",
    advice="have the trainer keep token ids, or sample anew with --prompts",
    known_from="trainers that log text alone (TRL, verl)",
)
def token_source(evidence: Evidence) -> Verdict:
    again = sum(rollout.token_source == "retokenized" for rollout in evidence.rollouts)
    total = len(evidence.rollouts)
    figure = f"{again} of {total} rollouts are re-tokenised text"
    return Verdict("warn" if again else "ok", figure, {"share_retokenized": share(again, total), "n": total})


@register(
    "truncation",
    measures="share of rollouts that reached the length limit without EOS",
    rule="warn: above 20 %; fail: above 80 %, as in a run that has collapsed: such rollouts say nothing of how to end "
    "(a warning alone where they were sampled for this checklist, to its own limit). Text that was tokenised again has "
    "lost its EOS and counts only with a finish reason",
    advice="raise the length limit; if it rises during training, look at 'repetition' and at r of the last tokens",
    known_from="arXiv 2604.08527",
)
def truncation(evidence: Evidence) -> Verdict:
    known = {
        index: rollout.finish_reason == "length" if rollout.finish_reason else evidence.end(index) is None
        for index, rollout in enumerate(evidence.rollouts)
        if len(rollout.response_ids) and (rollout.finish_reason or _keeps_eos(evidence, rollout))
    }
    if not known:
        raise Skip("no finish reasons, and no ids in which an EOS would be")
    cut = sum(known.values())
    rate = share(cut, len(known))
    status = grade(fail=rate > TRUNCATED_COLLAPSE and not evidence.options.sampled, warn=rate > TRUNCATED_LIMIT)
    figure = f"{cut} of {len(known)} rollouts ({rate:.0%}) end without EOS"
    return Verdict(status, figure, {"truncation_rate": rate, "n": len(known)})


def _keeps_eos(evidence: Evidence, rollout: Rollout) -> bool:
    """Whether ids end in EOS where the student wrote one; text has lost it."""
    return bool(evidence.student.eos_ids) and rollout.token_source != "retokenized"


@register(
    "repetition",
    measures="share of rollouts of at least L characters whose last L characters compress by more than τ (bytes over "
    "zlib bytes), among all rollouts; L = 10,000 unless --repetition-length says otherwise, τ = 10 (the definition we "
    "chose)",
    rule="warn: above 5 %; healthy runs have none, collapsed ones 0.3 to 0.6. Skipped when no rollout is that long",
    advice="look at the tails; stop earlier, or penalise repetition: the teacher rewards a loop that it can predict",
    known_from="arXiv 2604.08527",
)
def repetition(evidence: Evidence) -> Verdict:
    length = evidence.options.repetition_length
    ratios = [compression(text[-length:]) for text in _texts(evidence) if len(text) >= length]
    total = len(evidence.rollouts)
    if not ratios:
        raise Skip(f"none of {total} responses has {length:,} characters; --repetition-length lowers what is asked for")
    repeated = sum(ratio > COMPRESSION for ratio in ratios)
    rate = share(repeated, total)
    values = {"repetition_rate": rate, "n_long": len(ratios), "largest_compression": max(ratios), "n": total}
    figure = (
        f"{repeated} of {total} rollouts ({rate:.0%}) end in repetition; {len(ratios)} have {length:,} characters, the "
        f"most repetitive tail compresses {max(ratios):.1f} times"
    )
    return Verdict("warn" if rate > REPETITIVE_LIMIT else "ok", figure, values)


def _texts(evidence: Evidence) -> list[str]:
    """The responses as text: from their ids where there is a tokenizer, else as they came along."""
    tokenizer = evidence.student.tokenizer
    if tokenizer is None:
        return [rollout.response or "" for rollout in evidence.rollouts]
    known = ([token for token in r.response_ids if token < len(tokenizer)] for r in evidence.rollouts)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in known]


def compression(text: str) -> float:
    """Bytes over zlib bytes."""
    raw = text.encode("utf-8", errors="replace")
    return len(raw) / len(zlib.compress(raw)) if raw else float(np.nan)
