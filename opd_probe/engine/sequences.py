"""From rollouts to what the models read: input ids, the positions of states, and what is skipped or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.engine.batching import Side, plan_batches
from opd_probe.errors import InputError
from opd_probe.types import Rollout

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StateSequence:
    """One rollout as a model reads it.

    Attributes:
        rollout: its index in the list of rollouts.
        input_ids: prompt and response up to the last state; the last response token is never read.
        state_index: [n], for each state the index into ``input_ids`` of the token that predicts it.
        positions: [n], the 0-based positions of the states in the response, masked tokens counted.
        token_ids: [n], the sampled tokens.
        sampler_logprobs: [n], NaN where unknown.
        prompt_length: tokens of the prompt.
        whole: tokens of prompt and response together.
    """

    rollout: int
    input_ids: Ints
    state_index: Ints
    positions: Ints
    token_ids: Ints
    sampler_logprobs: NDArray[np.float32]
    prompt_length: int
    whole: int

    @property
    def shareable(self) -> tuple[bytes, int]:
        """The prompt, and how many of its tokens predict no state: all but the last."""
        return self.input_ids[: self.prompt_length].tobytes(), self.prompt_length - 1


def skip_reason(rollout: Rollout) -> str | None:
    """Why a rollout has no states, or None when it has some."""
    if len(rollout.response_ids) == 0:
        return "empty response"
    if rollout.response_mask is not None and not any(rollout.response_mask):
        return "fully masked response"
    return None


def build_sequence(index: int, rollout: Rollout) -> StateSequence | None:
    """The sequence of one rollout; None when it is skipped.

    The state of response token t is the prefix (prompt, response before t); it is predicted at the last token of
    that prefix.

    Raises:
        InputError: the prompt is empty, so that nothing predicts the first response token.
    """
    if skip_reason(rollout) is not None:
        return None
    prompt = np.asarray(rollout.prompt_ids, dtype=np.int64)
    response = np.asarray(rollout.response_ids, dtype=np.int64)
    if len(prompt) == 0:
        raise InputError(f"rollout {rollout.id!r}: prompt_ids is empty; at least one token must precede a response")
    for name in ("response_mask", "logprobs"):
        values = getattr(rollout, name)
        if values is not None and len(values) != len(response):
            raise InputError(
                f"rollout {rollout.id!r}: {name} has {len(values)} entries for {len(response)} response_ids"
            )
    mask = rollout.response_mask
    positions = np.arange(len(response)) if mask is None else np.flatnonzero(np.asarray(mask))
    last = int(positions[-1])
    logprobs = np.full(len(response), np.nan, dtype=np.float32)
    if rollout.logprobs is not None:
        logprobs[:] = [np.nan if value is None else value for value in rollout.logprobs]
    return StateSequence(
        rollout=index,
        input_ids=np.concatenate([prompt, response[:last]]),
        state_index=len(prompt) - 1 + positions,
        positions=positions,
        token_ids=response[positions],
        sampler_logprobs=logprobs[positions],
        prompt_length=len(prompt),
        whole=len(prompt) + len(response),
    )


def state_counts(rollouts: Sequence[Rollout], sequences: Sequence[StateSequence]) -> list[int]:
    """The number of states of every rollout, 0 for a skipped one."""
    counts = [0] * len(rollouts)
    for sequence in sequences:
        counts[sequence.rollout] = len(sequence.positions)
    return counts


def straddling(sequence: StateSequence, boundary: int) -> int:
    """How many states of a rollout that is longer than ``boundary`` have a prefix that is not."""
    return int((sequence.state_index < boundary).sum()) if sequence.whole > boundary else 0


Members = tuple[list[StateSequence], int]
"""Sequences that go through a model together, and how many tokens at their start are the same in all of them."""


def sequence_batches(sides: Sequence[Sequence[StateSequence]], batch_tokens: int) -> list[list[Members]]:
    """What goes through the models together: for each batch what each side reads, the rollouts in the same order.

    Args:
        sides: the sequences of the same rollouts: one list where both models read the same, else the student's and the
            teacher's.
    """
    known = [Side([len(s.input_ids) for s in side], [s.shareable for s in side]) for side in sides]
    return [
        [([side[i] for i in batch.members], shared) for side, shared in zip(sides, batch.shared, strict=True)]
        for batch in plan_batches(known, batch_tokens)
    ]


def pending_batches(
    sides: Sequence[Sequence[StateSequence]],
    batch_tokens: int,
    done: NDArray[np.bool_] | None = None,
    units: Sequence[Sequence[int]] | None = None,
) -> list[list[Members]]:
    """The batches of which something is to be done, in order.

    They are planned over everything, done or not: what goes through a model together rounds alike, so that work that
    goes on has the bytes of work that was never interrupted.

    Args:
        sides: as for :func:`sequence_batches`. done: bool [n_rollouts].
        units: the rollouts that go through together, one unit after another; None: all are one.
    """
    planned: list[list[Members]] = []
    for unit in [None] if units is None else [frozenset(one) for one in units]:
        inside = [[s for s in side if unit is None or s.rollout in unit] for side in sides]
        planned += sequence_batches(inside, batch_tokens) if inside[0] else []
    return [batch for batch in planned if done is None or not all(done[s.rollout] for s in batch[0][0])]


def with_prompts(rollouts: Sequence[Rollout], prompts: Sequence[Sequence[int]]) -> list[Rollout]:
    """The rollouts as a model reads them that is given other prompts; states stay aligned by response position.

    Raises:
        InputError: not one prompt for each rollout, or an empty one before a response.
    """
    if len(prompts) != len(rollouts):
        raise InputError(f"teacher prompts: {len(prompts)} for {len(rollouts)} rollouts; expected one for each")
    for rollout, ids in zip(rollouts, prompts, strict=True):
        if len(ids) == 0 and skip_reason(rollout) is None:
            raise InputError(
                f"rollout {rollout.id!r}: the teacher's prompt has no token; at least one must precede a response"
            )
    return [replace(rollout, prompt_ids=ids) for rollout, ids in zip(rollouts, prompts, strict=True)]


def build_sequences(rollouts: Sequence[Rollout], models: Sequence[Any], whose: str = "") -> list[StateSequence]:
    """The sequences of all rollouts that have states, refused where one of the models cannot read them.

    Args:
        models: loaded models, with ``name``, ``readable``, ``max_positions`` and ``placeholder_ids``.
        whose: for messages, such as ``"the teacher's "`` prompt.

    Raises:
        InputError: as :func:`build_sequence`; no rollout has a state; a token id that a model has no embedding for, or
            that is no text to it; a sequence longer than a model's positions.
    """
    built = (build_sequence(index, rollout) for index, rollout in enumerate(rollouts))
    sequences = [sequence for sequence in built if sequence is not None]
    if not sequences:
        reasons = sorted({skip_reason(rollout) or "" for rollout in rollouts})
        detail = f" ({', '.join(reasons)})" if rollouts else ""
        raise InputError(f"rollouts: none of the {len(rollouts)} has a state{detail}; expected non-empty responses")
    for sequence in sequences:
        rollout = rollouts[sequence.rollout]
        for model in models:
            _check_ids(rollout, sequence.input_ids, model.name, model.readable)
            _check_text(rollout, model)
            length = len(sequence.input_ids)
            if model.max_positions is not None and length > model.max_positions:
                raise InputError(
                    f"rollout {rollout.id!r}: {whose}prompt and response need {length} positions, {model.name} has "
                    f"{model.max_positions}; drop the rollout or sample with a lower --max-new-tokens"
                )
    return sequences


def replay_sides(
    rollouts: Sequence[Rollout], teacher_prompts: Sequence[Sequence[int]] | None
) -> list[list[StateSequence]]:
    """What the models of a replay read, before they are there: one list for both, or the student's and the teacher's.

    Raises:
        InputError: as :func:`build_sequences` without models, and :func:`with_prompts`.
    """
    own = build_sequences(rollouts, [])
    if teacher_prompts is None:
        return [own]
    return [own, build_sequences(with_prompts(rollouts, teacher_prompts), [], "the teacher's ")]


def sides_digest(sides: Sequence[Sequence[StateSequence]]) -> str:
    """sha256 over all that decides hidden states and the batches that they are computed in, besides the models."""
    digest = hashlib.sha256()
    for side in sides:
        for one in side:
            about = [one.rollout, one.prompt_length, one.whole, len(one.input_ids), len(one.state_index)]
            for values in (np.array(about, dtype=np.int64), one.input_ids, one.state_index):
                digest.update(np.ascontiguousarray(values, dtype=np.int64).data)
        digest.update(b"side")
    return digest.hexdigest()


def check_sampled(rollouts: Sequence[Rollout], sequences: Sequence[StateSequence], models: Sequence[Any]) -> None:
    """Refuse a sampled token that none of the models knows.

    Raises:
        InputError: names the rollout and the id.
    """
    widest = max(model.width for model in models)
    for sequence in sequences:
        _check_ids(rollouts[sequence.rollout], sequence.token_ids, "either model", widest)


def _check_text(rollout: Rollout, model: Any) -> None:
    """Refuse what a model reads together with an image, a video or a sound, which no rollout brings along."""
    places = {"prompt": rollout.prompt_ids, "response": rollout.response_ids}
    for token in model.placeholder_ids:
        for part, ids in places.items():
            if token in ids:
                raise InputError(
                    f"rollout {rollout.id!r}: token id {token} in its {part} stands for a piece of an image, a "
                    f"video or a sound to {model.name}, and no "
                    "rollout has those; expected ids of text alone; drop the rollout"
                )


def _check_ids(rollout: Rollout, ids: Ints, model: str, width: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= width:
        raise InputError(
            f"rollout {rollout.id!r}: token id {low if low < 0 else high} is outside the vocabulary of {model} "
            f"({width} ids); were the rollouts made with another tokenizer?"
        )
