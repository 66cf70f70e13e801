"""Rollouts of a teacher as examples for supervised training, in the layouts that TRL's SFTTrainer takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opd_probe.errors import InputError
from opd_probe.rollouts.files import prompt_key
from opd_probe.rollouts.repeats import goes_in_circles, near_duplicates, words
from opd_probe.types import Rollout

Layout = Literal["messages", "prompt-completion"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is kept, in the order of the rollouts, and how many were left out for which reason."""

    rollouts: list[Rollout]
    left_out: Counter[str]


def choose(rollouts: Sequence[Rollout], *, right_from: float | None, per_prompt: int | None) -> Chosen:
    """The rollouts that are worth imitating: not cut off, not ending in repetition, none twice to one prompt.

    Args:
        right_from: the score from which a response is right; None: wrong ones are kept, too.
        per_prompt: at most so many of a prompt, the first of them; None: all.

    Raises:
        InputError: a rollout without text.
    """
    left_out: Counter[str] = Counter()
    kept: list[Rollout] = []
    for rollout in rollouts:
        reason = _reason(rollout, right_from)
        if reason is None:
            kept.append(rollout)
        else:
            left_out[reason] += 1
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in kept:
        by_prompt.setdefault(prompt_key(rollout), []).append(rollout)
    wanted: set[str] = set()
    for group in by_prompt.values():
        twins = near_duplicates([text_of(rollout) for rollout in group])
        single = [rollout for rollout, twin in zip(group, twins, strict=True) if twin is None]
        left_out["duplicate"] += len(group) - len(single)
        left_out["beyond per prompt"] += max(len(single) - (per_prompt or len(single)), 0)
        wanted |= {rollout.id for rollout in single[:per_prompt]}
    return Chosen([rollout for rollout in kept if rollout.id in wanted], +left_out)


def _reason(rollout: Rollout, right_from: float | None) -> str | None:
    if rollout.finish_reason == "length":
        return "cut off"
    text = text_of(rollout)
    if not text.strip():
        return "empty"
    if goes_in_circles(words(text)) or goes_in_circles(list(rollout.response_ids)):
        return "repetition"
    if right_from is not None and rollout.score is None:
        return "not graded"
    if right_from is not None and not (rollout.score or 0.0) >= right_from:
        return "wrong"
    return None


def text_of(rollout: Rollout) -> str:
    """The response as text.

    Raises:
        InputError: only its ids are there.
    """
    if rollout.response is None:
        raise InputError(f"rollout {rollout.id!r}: has token ids and no text; give the tokenizer with --tokenizer")
    return rollout.response


def examples(rollouts: Sequence[Rollout], layout: Layout) -> list[dict[str, Any]]:
    """A row for each rollout.

    ``messages``: the chat with the response as its last turn; ``prompt-completion``: both apart, so that the loss is on
    the response alone. Rollouts of plain text are ``prompt`` and ``completion`` as text in either.

    Raises:
        InputError: some are chats and some are plain text, or neither is known.
    """
    rows: list[dict[str, Any]] = []
    for rollout in rollouts:
        messages = rollout.extra.get("messages")
        answer = {"role": "assistant", "content": text_of(rollout)}
        if messages is None and rollout.prompt is None:
            raise InputError(f"rollout {rollout.id!r}: neither chat messages nor the prompt's text are there")
        if messages is None:
            rows.append({"prompt": rollout.prompt, "completion": text_of(rollout)})
        elif layout == "messages":
            rows.append({"messages": [*messages, answer]})
        else:
            rows.append({"prompt": list(messages), "completion": [answer]})
    if len({tuple(sorted((name, type(value).__name__) for name, value in row.items())) for row in rows}) > 1:
        raise InputError("some rollouts are chats and some are plain text; give one kind of them at a time")
    return rows
