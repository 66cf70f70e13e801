"""Are the student's tokens, all of them and nothing else, what the mask counts?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opd_probe.checks.evidence import GREEDY, Columns, Evidence, Floats, Skip, says_zero_of_all
from opd_probe.checks.registry import Verdict, grade, register
from opd_probe.checks.stored import FIELD, numbers
from opd_probe.errors import OpdProbeError
from opd_probe.models.vocabulary import special_ids
from opd_probe.rollouts.prompts import encode_messages
from opd_probe.types import Rollout

PLACEHOLDER = float(np.log(0.5))
"""Replayed log-probability, in nats, below which an exact 0.0 is no rounding, and not what top-p makes of a token that
alone is enough: such a sampler says 0.0 of a token of probability 0.8 when p is 0.8."""


@register(
    "mask_eos",
    measures="finished responses whose final EOS is masked, or missing, and responses with padding that is counted",
    rule="fail: a final EOS that is there and not counted (nobody teaches the student to stop), or counted padding; "
    "warn: finished responses without their EOS",
    advice="make the mask from lengths, not from ids: where pad is EOS, 'id != pad' hides the end of every response",
    known_from="trl PR#6357, OPSD#30",
)
def mask_eos(evidence: Evidence) -> Verdict:
    side = evidence.student
    if not side.eos_ids:
        raise Skip("the student has no EOS id")
    finished = hidden = lacking = padded = 0
    for index, rollout in enumerate(evidence.rollouts):
        end, mask = evidence.end(index), evidence.mask(index)
        padded += bool(mask[end + 1 :].any()) if end is not None else False
        if end is not None:
            finished += 1
            hidden += not mask[end]
        elif rollout.finish_reason == "stop" and len(mask):
            finished += 1
            lacking += 1
    if not finished:
        raise Skip("no response of the handful has finished")
    values = {"n_finished": finished, "n_hidden": hidden, "n_missing": lacking, "n_padding_counted": padded}
    pad = "; pad is EOS" if side.pad_id in side.eos_ids else ""
    figure = (
        f"of {finished} finished responses the EOS of {hidden} is masked and that of {lacking} missing, {padded} count "
        f"padding{pad}"
    )
    return Verdict(grade(fail=hidden + padded > 0, warn=lacking > 0), figure, values)


@register(
    "mask_zeros",
    measures="counted tokens whose stored log-probability is exactly 0.0 while the replay finds them less than certain",
    rule="fail: any below log 0.5 = −0.7 nats in the replay: a placeholder of tokens that no model sampled, inside the "
    "mask; above it may be rounding, or a token that alone is the top-p set. Where the sampler says 0.0 of every "
    "token of every rollout it was greedy (temperature 0), which the line 'sampler_logprobs' is about",
    advice="mask the tokens that came from tools or templates; they are no states of the student",
    known_from="open-instruct PR#1847",
)
def mask_zeros(evidence: Evidence) -> Verdict:
    states = evidence.replayed()
    checked = zeros = longest = 0
    where = ""
    greedy = says_zero_of_all(evidence)
    for index, columns in states.items():
        rollout, positions = evidence.rollouts[index], columns["position"]
        for stored, own in _stored(replace(rollout, logprobs=None) if greedy else rollout, columns):
            checked += 1
            bad = (stored[positions] == 0.0) & (own < PLACEHOLDER)
            zeros += int(bad.sum())
            run = _longest_run(positions[bad])
            if run > longest:
                longest, where = run, f", the longest run of {run} in rollout {rollout.id!r}"
    if not checked and greedy:
        raise Skip(f"the sampler says {GREEDY}")
    if not checked:
        raise Skip("no rollout carries log-probabilities of sampler or teacher")
    figure = f"{zeros} counted tokens have a stored log-probability of exactly 0.0 that the replay refutes{where}"
    values = {"n_placeholders": zeros, "longest_run": longest}
    return Verdict("fail" if zeros else "ok", figure, values)


def _stored(rollout: Rollout, columns: Columns) -> Iterator[tuple[Floats, Floats]]:
    """Stored log-probabilities by response token, with the replayed ones by state."""
    given = ((rollout.logprobs, "student_logprob"), (rollout.extra.get(FIELD), "teacher_logprob"))
    for values, own in given:
        stored = numbers(values, len(rollout.response_ids))
        if stored is not None:
            yield stored, columns[own]


def _longest_run(positions: Any) -> int:
    longest = run = 0
    before = None
    for place in positions.tolist():
        run = run + 1 if before is not None and place == before + 1 else 1
        longest, before = max(longest, run), place
    return longest


@register(
    "mask_tokens",
    measures="counted tokens that the chat template puts around other turns (user, tool), and other special tokens "
    "than EOS",
    rule="fail: a token of another turn is counted: the student is trained on what it did not write (a warning where "
    "the rollouts were sampled for this checklist: it did write it, and was not stopped); warn: another special token "
    "is counted",
    advice="mask user and tool turns together with their markers (response_mask 0)",
    known_from="open-instruct PR#1847",
)
def mask_tokens(evidence: Evidence) -> Verdict:
    side = evidence.student
    if side.tokenizer is None:
        raise Skip("the student has no tokenizer")
    own, others = turn_markers(side.tokenizer)
    ending = {*side.eos_ids, side.pad_id}  # the line 'mask_eos' is about these
    special = special_ids(side.tokenizer) - ending - others - own
    counted = [
        int(t) for i, r in enumerate(evidence.rollouts) for t in np.asarray(r.response_ids, int)[evidence.mask(i)]
    ]
    foreign = [token for token in counted if token in others]
    odd = [token for token in counted if token in special]
    values = {"n_tokens": len(counted), "n_of_other_turns": len(foreign), "n_special": len(odd)}
    figure = f"{len(foreign)} markers of other turns and {len(odd)} other special tokens among {len(counted):,} counted"
    if foreign or odd:
        shown = max(set(foreign or odd), key=(foreign or odd).count)
        figure += f", most often {side.label(shown)}"
    fail = bool(foreign) and not evidence.options.sampled
    return Verdict(grade(fail=fail, warn=bool(foreign or odd)), figure, values)


def turn_markers(tokenizer: Any) -> tuple[set[int], set[int]]:
    """Special and added tokens that the chat template writes in assistant turns, and those that it writes in other
    turns alone. EOS counts to the former."""
    contents = set(tokenizer("a b c", add_special_tokens=False)["input_ids"])
    marks = (special_ids(tokenizer) | set(tokenizer.added_tokens_decoder)) - contents
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    opened = _rendering(tokenizer, [user], prompt=True)
    answered = _rendering(tokenizer, [user, assistant], prompt=False)
    own = {tokenizer.eos_token_id, *answered[_common(opened, answered) :]}
    tool = _rendering(tokenizer, [user, assistant, {"role": "tool", "content": "c"}], prompt=False)
    others = {*_rendering(tokenizer, [user], prompt=False), *tool[_common(answered, tool) :]}
    return own & marks, (others & marks) - own


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids at their start two sequences have in common."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _rendering(tokenizer: Any, messages: Sequence[Any], *, prompt: bool) -> list[int]:
    """Token ids of a conversation; none when the template is absent or refuses it, as many do of tools."""
    try:
        return encode_messages("turn markers", messages, tokenizer, generation_prompt=prompt)
    except OpdProbeError:
        return []
