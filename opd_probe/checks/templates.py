"""Does each model read a prompt as it was trained to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from opd_probe.checks.evidence import Evidence, Side, Skip, share
from opd_probe.checks.registry import Verdict, register
from opd_probe.rollouts.chat import chat_variables, lost_words
from opd_probe.rollouts.prompts import encode_messages, render_messages
from opd_probe.rollouts.teacher_prompts import messages_of

TAIL = 8
"""Tokens of a prompt's end that are shown."""

PROMPT_LIMIT = 0.05
"""Mean |Δ| in nats per token that a prompt may make: rounding makes a fifth of it, the reported bias was 0.29."""

BOUNDARY = 8
"""Response positions that belong to the boundary between prompt and response."""

BOUNDARY_LIMIT = 3.0
"""Nats below the rest of the response: a twentieth of the probability ratio that is found elsewhere."""

Token = TypeVar("Token", int, str)

PROBE = ({"role": "user", "content": "1 + 1 = ?"},)
"""What templates are compared on when no rollout has messages."""


@register(
    "template_tails",
    measures="the last tokens of a prompt as the chat templates of both models render it, side by side",
    rule="warn: the renderings differ, at the tail (generation prompt, thinking mode) or before it (system prompt)",
    advice="see in the line 'teacher_prompt' what it costs; set thinking mode and system prompt of both alike, or "
    "score with the teacher's own template",
    known_from="tinker-cookbook#796, #797, OPSD#10",
)
def template_tails(evidence: Evidence) -> Verdict:
    first = next((rollout for rollout in evidence.rollouts if rollout.extra.get("messages")), None)
    messages = PROBE if first is None else messages_of(first.id, first)
    variables = {} if first is None else chat_variables(first.id, first.extra)
    student = _rendered(evidence.student, "student", messages, variables)
    teacher = _rendered(evidence.teacher, "teacher", messages, variables)
    tails = [" ".join(tokens[-TAIL:]) for tokens in (student, teacher)]
    values = {"student_tail": student[-TAIL:], "teacher_tail": teacher[-TAIL:], "equal": student == teacher}
    if student == teacher:
        return Verdict("ok", f"both render the same prompt, ending in {tails[0]!r}", values)
    place, one, two = _first_difference(student, teacher)
    values |= {"first_difference": place, "student_piece": one, "teacher_piece": two}
    pieces = " and ".join("nothing" if piece is None else repr(piece) for piece in (one, two))
    apart = f"they part at token {place}, {pieces}"
    if tails[0] == tails[1]:
        figure = f"{len(student)} tokens (student), {len(teacher)} (teacher); both end in {tails[0]!r}; {apart}"
        return Verdict("warn", figure, values)
    return Verdict("warn", f"ends in {tails[0]!r} (student), {tails[1]!r} (teacher); {apart}", values)


def _rendered(side: Side, who: str, messages: Sequence[Any], variables: Mapping[str, Any]) -> list[str]:
    if getattr(side.tokenizer, "chat_template", None) is None:
        raise Skip(f"the {who} has no chat template")
    ids = encode_messages(f"template of the {who}", messages, side.tokenizer, variables=variables)
    return [str(token) for token in side.tokenizer.convert_ids_to_tokens(ids)]


@register(
    "rendered_prompts",
    measures="share of rollouts with chat messages whose prompt ids are what the student's template makes of them",
    rule="warn: below 1: the states were not visited under the prompt that this tokenizer makes, so that samples of "
    "the checkpoint itself, and a teacher's own prompt, would not be comparable with them",
    advice="look for a system prompt, a thinking mode or a renderer of the trainer's own, and put its template into "
    "the student's tokenizer directory",
    known_from="tinker-cookbook#796, #797",
)
def rendered_prompts(evidence: Evidence) -> Verdict:
    if not evidence.student_prompts:
        raise Skip(evidence.missing.get("student_prompts", "no rollout has chat messages"))
    total = len(evidence.student_prompts)
    differing = [
        index
        for index, ids in evidence.student_prompts.items()
        if tuple(ids) != tuple(evidence.rollouts[index].prompt_ids)
    ]
    part = share(total - len(differing), total)
    values = {"share_equal": part, "n": total}
    if not differing:
        return Verdict("ok", f"{total} of {total} prompts are what the student's template makes of them", values)
    rollout = evidence.rollouts[differing[0]]
    place, stored, made = _first_difference(rollout.prompt_ids, evidence.student_prompts[differing[0]])
    labels = [evidence.student.label(token) if token is not None else "nothing" for token in (stored, made)]
    figure = (
        f"{total - len(differing)} of {total} prompts are what the student's template makes of them; in rollout "
        f"{rollout.id!r} token {place} is {labels[0]}, the template makes {labels[1]}"
    )
    return Verdict("warn", figure, values)


@register(
    "message_words",
    measures="share of rollouts with chat messages of which the student's template leaves out a word",
    rule="fail: any: what the template drops (content in parts, a role that it does not know) nobody reads; an "
    "assistant's thinking, which templates drop on purpose, is not counted",
    advice="give content in the form that the template takes, or take a template that renders every message",
    known_from="Qwen3's template, which takes text alone",
)
def message_words(evidence: Evidence) -> Verdict:
    chats = [rollout for rollout in evidence.rollouts if rollout.extra.get("messages")]
    tokenizer = evidence.student.tokenizer
    if not chats or getattr(tokenizer, "chat_template", None) is None:
        raise Skip("no rollout has chat messages" if not chats else "the student has no chat template")
    lost: dict[str, list[str]] = {}
    for rollout in chats:
        messages, variables = messages_of(rollout.id, rollout), chat_variables(rollout.id, rollout.extra)
        lost[rollout.id] = lost_words(messages, render_messages(rollout.id, messages, tokenizer, variables=variables))
    some = {name: words for name, words in lost.items() if words}
    figure = f"the student's template leaves out words of {len(some)} of {len(chats)} rollouts with chat messages"
    if some:
        name, words = next(iter(some.items()))
        figure += f"; of {name!r} {len(words)}, the first {words[0]!r}"
    values = {"share_lost": share(len(some), len(chats)), "n": len(chats)}
    return Verdict("fail" if some else "ok", figure, values)


def _first_difference(left: Sequence[Token], right: Sequence[Token]) -> tuple[int, Token | None, Token | None]:
    """The first index where two sequences differ, and what each has there (None beyond its end)."""
    place = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    one, two = (values[place] if place < len(values) else None for values in (left, right))
    return place, one, two


@register(
    "teacher_prompt",
    measures="log q of the same response tokens under the prompt of the teacher's own template, less that under the "
    "student's prompt, in nats per token",
    rule="warn: mean |Δ| above 0.05 nats: beyond rounding, the prompt alone moves every reward",
    advice="decide which prompt the teacher should read; if its own, have it scored under its own template",
    known_from="tinker-cookbook#796, #797",
)
def teacher_prompt(evidence: Evidence) -> Verdict:
    evidence.replayed()
    if not evidence.prompt_change:
        reasons = (evidence.missing.get(name) for name in ("prompt_change", "teacher_prompts"))
        raise Skip(next((reason for reason in reasons if reason), "no replayed rollout has chat messages"))
    change = np.concatenate(list(evidence.prompt_change.values()))
    known = change[np.isfinite(change)]
    if not len(known):
        raise Skip("no response token has a log-probability under both prompts")
    mean, size = float(known.mean()), float(np.abs(known).mean())
    values = {"mean_change": mean, "mean_absolute_change": size, "n_tokens": len(known)}
    figure = f"{mean:+.3f} nats per token under the teacher's own prompt, mean |Δ| {size:.3f}, {len(known):,} tokens"
    return Verdict("warn" if size > PROMPT_LIMIT else "ok", figure, values)


@register(
    "thinking_boundary",
    measures="mean r at each of the response positions 0-7 against its mean at all later ones",
    rule="warn: one of them is more than 3 nats below the later ones: there the teacher expects another token than the "
    "student writes, as at <think> under a template that has closed it",
    advice="compare the template tails; set the thinking mode of both alike, or mask these positions",
    known_from="OPSD#10",
)
def thinking_boundary(evidence: Evidence) -> Verdict:
    positions = np.concatenate([columns["position"] for columns in evidence.replayed().values()])
    rewards = np.concatenate(list(evidence.rewards().values()))
    known = np.isfinite(rewards)
    later = rewards[known & (positions >= BOUNDARY)]
    if not len(later):
        raise Skip(f"no response is longer than {BOUNDARY} tokens")
    first = [rewards[known & (positions == place)] for place in range(BOUNDARY)]
    means = [float(values.mean()) if len(values) else float("nan") for values in first]
    rest = float(later.mean())
    if all(np.isnan(means)):
        raise Skip(f"no state at the response positions 0-{BOUNDARY - 1}")
    lowest = int(np.nanargmin(means))
    values = {"reward_by_position": means, "reward_later": rest}
    figure = f"r at positions 0-{BOUNDARY - 1}: {' '.join(f'{value:+.1f}' for value in means)}; later {rest:+.2f} nats"
    return Verdict("warn" if means[lowest] < rest - BOUNDARY_LIMIT else "ok", figure, values)
