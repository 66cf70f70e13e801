"""Hidden states of one model kept on disk, so that two models need not be in memory together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.engine.sequences import StateSequence, build_sequences, sequence_batches
from opd_probe.types import Rollout

FILE = "hidden.bin"


@dataclass
class StoredModel:
    """What a replay needs of a model that has done its part: its output layer, and its hidden states on disk.

    Attributes:
        states: [N, d], the hidden states that predict the states' tokens, rollout after rollout, mapped from a file.
        offsets: the first row of each rollout, by its index.
    """

    name: str
    width: int
    max_positions: int | None
    output_layer: Any
    device: torch.device
    tokenizer: Any
    identity: dict[str, Any]
    states: Tensor
    offsets: dict[int, int]

    def state_hidden(self, members: Sequence[StateSequence]) -> Tensor:
        """Hidden states of some rollouts, one after another, [n, d], on the model's device."""
        pieces = [self.states[self.offsets[s.rollout] :][: len(s.positions)] for s in members]
        return torch.cat(pieces).to(self.device)


@torch.inference_mode()
def store_hidden_states(
    model: Any,
    rollouts: Sequence[Rollout],
    directory: Path,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> StoredModel:
    """Run one model over all rollouts and keep the last hidden states, not the logits, in ``directory``.

    The batches are those of a replay, so that the states are the same to the last bit.

    Args:
        model: a loaded model.

    Raises:
        InputError: as :func:`build_sequences`.
    """
    sequences = build_sequences(rollouts, [model])
    counts = [len(sequence.positions) for sequence in sequences]
    starts = np.concatenate([[0], np.cumsum(counts)])
    offsets = {s.rollout: int(start) for s, start in zip(sequences, starts[:-1], strict=True)}
    total, done = int(starts[-1]), 0
    shape = (total, int(model.output_layer.weight.shape[1]))
    states: Tensor | None = None
    for members, shared in sequence_batches(sequences, batch_tokens):
        hidden = state_hidden(model, members, shared).cpu()
        if states is None:
            path = str(directory / FILE)
            states = torch.from_file(path, shared=True, size=shape[0] * shape[1], dtype=hidden.dtype).view(shape)
        row = 0
        for sequence in members:
            n = len(sequence.positions)
            states[offsets[sequence.rollout] :][:n] = hidden[row : row + n]
            row += n
        done += row
        if progress is not None:
            progress(done, total)
    assert states is not None  # build_sequences refuses a list without states
    return StoredModel(
        model.name,
        model.width,
        model.max_positions,
        model.output_layer,
        model.device,
        model.tokenizer,
        model.identity,
        states,
        offsets,
    )


def state_hidden(model: Any, members: Sequence[StateSequence], shared: int) -> Tensor:
    """Hidden states that predict the states' tokens, [N, d], members one after another.

    Right padding needs no attention mask: a causal model never looks at what comes later.

    Args:
        shared: tokens at the start that are the same in all members.
    """
    if isinstance(model, StoredModel):
        return model.state_hidden(members)
    longest = max(len(s.input_ids) for s in members)
    ids = np.zeros((len(members), longest), dtype=np.int64)
    index = []
    for row, sequence in enumerate(members):
        ids[row, : len(sequence.input_ids)] = sequence.input_ids
        index.append(row * (longest - shared) + sequence.state_index - shared)
    hidden: Tensor = model.hidden(torch.from_numpy(ids).to(model.device), shared)
    flat = torch.from_numpy(np.concatenate(index)).to(hidden.device)
    return hidden.flatten(0, 1).index_select(0, flat)
