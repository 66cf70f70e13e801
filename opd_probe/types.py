"""The nouns of the toolkit, as frozen dataclasses. Imports the standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

TokenSource = Literal["sampled_ids", "retokenized"]
"""Whether a rollout's ids are what was sampled, or were made from text afterwards."""

StateOrigin = Literal["own", "fixed", "unknown"]
"""Whose states a row describes: the checkpoint's ``own`` samples (on-policy), one ``fixed`` set shared by all
checkpoints, or ``unknown``."""


StudentStates = Literal["sampled", "replayed"]
"""Where a student's hidden states of its own responses come from: what was read while these were sampled, or a replay,
in which the student runs over them again."""

LengthRule = Literal["prefix", "whole", "server"]
"""Whose length decides the rotary factors of a model that has several (longrope, dynamic scaling)."""

LENGTH_RULES: tuple[LengthRule, ...] = get_args(LengthRule)
"""The prefix that a token is predicted from, as in ``generate``; the whole rollout, as in a trainer's forward; the
longest that the model takes, at every prefix, as in a vLLM server."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A reference to a model on disk or on the hub. Cheap to make; loading is a separate act.

    Attributes:
        path: the local directory with the weights, or a hub id.
        run: the name of the run it belongs to.
        step: the optimiser step, or None when unknown.
        format: the name of the checkpoint format that recognised it (``"huggingface"``, ``"peft"``, ``"verl-fsdp"``,
            ``"verl-lora"``, ``"dcp"``, ``"safetensors"``, ``"hub"``).
        revision: the hub revision, for a hub id.
        base: for an adapter, the model that it changes; for weights that were saved without a configuration, the model
            that has it (a path or a hub id).
    """

    path: str
    run: str = ""
    step: int | None = None
    format: str = "huggingface"
    revision: str | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem for the student: token ids once they are known, else text or chat messages.

    Attributes:
        extra: other fields of its row, such as a solution that only a teacher may see.
    """

    id: str
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    ids: Sequence[int] | None = None
    answer: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def carried(self) -> dict[str, Any]:
        """What a rollout of this prompt has as its ``extra``: the other fields, and the messages."""
        return {**self.extra, **({} if self.messages is None else {"messages": list(self.messages)})}


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response to one prompt. Token ids are the truth.

    Attributes:
        id: unique within its file.
        prompt_ids, response_ids: token ids.
        prompt_id: groups the rollouts of one prompt (the unit of intervals); None: derived from ``prompt_ids``.
        response_mask: one 0/1 per response id; 1 where the student generated the token. None: all ones.
        step: the training step that it was sampled at.
        answer: the reference answer of the problem, as text; of several the first, and all are ``extra["answers"]``.
        score: correctness or reward, as the grader gave it.
        logprobs: the sampler's own log-probability of each response token, in nats; NaN where unknown.
        finish_reason: ``"stop"`` (EOS was sampled), ``"length"``, or None when unknown.
        token_source: whether the ids are what was sampled.
        sampler: what sampled it, with its version (``"vllm 0.32.0"``); None when unknown.
        sampling: how, as far as is known: ``temperature``, ``top_p``, ``top_k``, ``min_p``, ….
        extra: other fields of its row; ``messages`` among them are the chat messages that its prompt was made of.
    """

    id: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    prompt_id: str | None = None
    response_mask: Sequence[int] | None = None
    step: int | None = None
    prompt: str | None = None
    response: str | None = None
    answer: str | None = None
    score: float | None = None
    logprobs: Sequence[float] | None = None
    finish_reason: str | None = None
    token_source: TokenSource = "sampled_ids"
    sampler: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
