"""From rollouts to what the models read: input ids, the positions of states, and what is skipped or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.engine.batching import plan_batches
from opd_probe.errors import InputError
from opd_probe.types import Rollout

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StateSequence:
    """One rollout as both models read it.

    Attributes:
        rollout: its index in the list of rollouts.
        input_ids: prompt and response up to the last state; the last response token is never read.
        state_index: [n], for each state the index into ``input_ids`` of the token that predicts it.
        positions: [n], the 0-based positions of the states in the response, masked tokens counted.
        token_ids: [n], the sampled tokens.
        sampler_logprobs: [n], NaN where unknown.
        prompt_length: tokens of the prompt.
    """

    rollout: int
    input_ids: Ints
    state_index: Ints
    positions: Ints
    token_ids: Ints
    sampler_logprobs: NDArray[np.float32]
    prompt_length: int

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
    )


def sequence_batches(sequences: Sequence[StateSequence], batch_tokens: int) -> list[tuple[list[StateSequence], int]]:
    """Which sequences go through a model together, and how many tokens at their start are the same in all of them."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    planned = plan_batches(lengths, [sequence.shareable for sequence in sequences], batch_tokens)
    return [([sequences[index] for index in batch.members], batch.shared) for batch in planned]


def build_sequences(rollouts: Sequence[Rollout], models: Sequence[Any]) -> list[StateSequence]:
    """The sequences of all rollouts that have states, refused where one of the models cannot read them.

    Raises:
        InputError: as :func:`build_sequence` and :func:`check_sequences`.
    """
    built = (build_sequence(index, rollout) for index, rollout in enumerate(rollouts))
    sequences = [sequence for sequence in built if sequence is not None]
    check_sequences(rollouts, sequences, models)
    return sequences


def check_sequences(rollouts: Sequence[Rollout], sequences: Sequence[StateSequence], models: Sequence[Any]) -> None:
    """Refuse what a model cannot read, before anything runs.

    Args:
        models: loaded models, with ``name``, ``width`` and ``max_positions``.

    Raises:
        InputError: no rollout has a state; a token id that a model has no embedding for; a sequence longer than
            a model's positions.
    """
    if not sequences:
        reasons = sorted({skip_reason(rollout) or "" for rollout in rollouts})
        detail = f" ({', '.join(reasons)})" if rollouts else ""
        raise InputError(f"rollouts: none of the {len(rollouts)} has a state{detail}; expected non-empty responses")
    widest = max(model.width for model in models)
    for sequence in sequences:
        rollout = rollouts[sequence.rollout]
        _check_ids(rollout, sequence.token_ids, "either model", widest)
        for model in models:
            _check_ids(rollout, sequence.input_ids, model.name, model.width)
            length = len(sequence.input_ids)
            if model.max_positions is not None and length > model.max_positions:
                raise InputError(
                    f"rollout {rollout.id!r}: prompt and response need {length} positions, {model.name} has "
                    f"{model.max_positions}; drop the rollout or sample with a lower --max-new-tokens"
                )


def _check_ids(rollout: Rollout, ids: Ints, model: str, width: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= width:
        raise InputError(
            f"rollout {rollout.id!r}: token id {low if low < 0 else high} is outside the vocabulary of {model} "
            f"({width} ids); were the rollouts made with another tokenizer?"
        )
