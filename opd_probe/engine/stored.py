"""Hidden states of one model kept on disk: for several replays, or so that no two models are in memory together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.atomic import reserve
from opd_probe.engine.sequences import Members, StateSequence, build_sequences, pending_batches, state_counts
from opd_probe.errors import OutputError
from opd_probe.stats.threads import fitting_threads
from opd_probe.types import Rollout


class StoredModel:
    """A model whose last hidden states, not its logits, are kept once they are computed: it runs once, however many
    replays look at it.

    A replay that asks for states which are not there yet has the model compute them, in its own batches;
    :meth:`fill` computes all of them and lets the model go.

    Args:
        model: a loaded model.
        rollouts: all rollouts of the replays.
        place: the directory whose disk takes the hidden states; None: the system's for temporary files. The file has
            no name, so that nothing is left of it, however the process ends.
        rule: whose length decides the factors of a model that has several.

    Raises:
        InputError: as :func:`build_sequences`.
    """

    def __init__(
        self, model: Any, rollouts: Sequence[Rollout], place: Path | None = None, rule: str = "prefix"
    ) -> None:
        self.name, self.tokenizer, self.identity = model.name, model.tokenizer, model.identity
        self.width, self.max_positions, self.output_layer = model.width, model.max_positions, model.output_layer
        self.length_factors, self.placeholder_ids = model.length_factors, model.placeholder_ids
        self.readable = model.readable
        self._model, self._place, self._rule = model, place, rule
        self._sequences = build_sequences(rollouts, [model])
        counts = np.array(state_counts(rollouts, self._sequences), dtype=np.int64)
        self._ends = np.cumsum(counts)
        self._counts = counts
        self._known = np.zeros(len(rollouts), dtype=bool)
        self._states: Tensor | None = None

    def fill(
        self,
        batch_tokens: int,
        progress: Callable[[int, int], None] | None = None,
        units: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Compute what is not there yet, in the batches of a replay, and let the model go.

        Args:
            progress: called with (states done, states in all).
            units: as for :meth:`opd_probe.engine.replay.Replay.states`.

        Raises:
            OutputError: the disk has no room for the states.
        """
        pending = pending_batches([self._sequences], batch_tokens, self._known, units)
        self._fill([members for (members,) in pending], progress)

    def fill_alone(self, apart: Mapping[int, int], progress: Callable[[int, int], None] | None = None) -> None:
        """As :meth:`fill`, each rollout by itself.

        Args:
            apart: by rollout, how many tokens at its start go through the layers before the others; none where it is
                not named.
        """
        todo = [sequence for sequence in self._sequences if not self._known[sequence.rollout]]
        self._fill([([sequence], apart.get(sequence.rollout, 0)) for sequence in todo], progress)

    @torch.inference_mode()
    def _fill(self, batches: Sequence[Members], progress: Callable[[int, int], None] | None) -> None:
        for members, shared in batches:
            with fitting_threads(self.output_layer.weight):
                self.state_hidden(members, shared)
            if progress is not None:
                progress(int(self._counts[self._known].sum()), int(self._counts.sum()))
        self._model = None

    def state_hidden(self, members: Sequence[StateSequence], shared: int) -> Tensor:
        """Hidden states of some rollouts, one after another, [n, d], where the output layer is.

        Args:
            shared: as for :func:`state_hidden`.
        """
        missing = [sequence for sequence in members if not self._known[sequence.rollout]]
        if missing:
            hidden = state_hidden(self._model, missing, shared, self._rule)
            self._keep(missing, hidden)
            if len(missing) == len(members):
                return hidden
        assert self._states is not None
        pieces = [self._states[self._rows(sequence)] for sequence in members]
        return torch.cat(pieces).to(self.output_layer.weight.device)

    def _keep(self, members: Sequence[StateSequence], hidden: Tensor) -> None:
        if self._states is None:
            self._states = _on_disk((int(self._counts.sum()), hidden.shape[1]), hidden.dtype, self._place)
        for sequence, states in zip(members, hidden.cpu().split([len(s.positions) for s in members]), strict=True):
            self._states[self._rows(sequence)] = states
            self._known[sequence.rollout] = True

    def _rows(self, sequence: StateSequence) -> slice:
        end = int(self._ends[sequence.rollout])
        return slice(end - len(sequence.positions), end)


def _on_disk(shape: tuple[int, int], dtype: torch.dtype, place: Path | None) -> Tensor:
    """A tensor in a mapped file without a name; the system drops what of it is in memory when others need the room."""
    size = shape[0] * shape[1] * dtype.itemsize
    try:
        with TemporaryFile(dir=place) as file:
            reserve(file, size)
            mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
    except OSError as error:
        raise OutputError(
            f"hidden states: {size / 1e9:.1f} GB do not fit on the disk of {place or 'temporary files'} "
            f"({error.strerror}); free space or choose another --out"
        ) from None
    return torch.from_numpy(mapped).view(dtype).view(shape)


def state_hidden(model: Any, members: Sequence[StateSequence], shared: int, rule: str = "prefix") -> Tensor:
    """Hidden states that predict the states' tokens, [N, d], members one after another.

    Args:
        shared: tokens at the start that are the same in all members.
        rule: whose length decides the factors of a model that has several, see :mod:`opd_probe.models.lengths`.
    """
    if isinstance(model, StoredModel):
        return model.state_hidden(members, shared)
    hidden: Tensor = model.outputs(
        [sequence.input_ids for sequence in members],
        [sequence.state_index for sequence in members],
        shared,
        wholes=[sequence.whole for sequence in members],
        rule=rule,
    )
    return hidden
