"""Hidden states of one model kept on disk: for several replays, or so that no two models are in memory together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.atomic import reserve
from opd_probe.engine.sequences import Members, StateSequence, build_sequences, pending_batches
from opd_probe.errors import OutputError, warn_in_passing
from opd_probe.stats.threads import fitting_threads
from opd_probe.types import Rollout

SHARE = 0.5
"""The share of a disk's free room that states may take which can be computed again; traces need some of the rest."""


class StoredModel:
    """A model whose last hidden states, not its logits, are kept once they are computed: it runs once, however many
    replays look at it.

    A replay that asks for states which are not there yet has the model compute them; :meth:`fill` computes all of them
    and lets the model go.

    Args:
        model: a loaded model.
        rollouts: all rollouts of the replays, as the model reads them.
        place: the directory whose disk takes the hidden states; None: the system's for temporary files. The file has
            no name, so that nothing is left of it, however the process ends.
        rule: whose length decides the factors of a model that has several.
        batches: of all sequences, in which the states are computed, whoever asks for some of them first, so that their
            last bits do not depend on that; whether the model can read them is left to the replays. None: the batches
            of whoever asks.
        optional: whether states that would take more than :data:`SHARE` of the free disk are computed again each time.

    Attributes:
        refused: whether they are, for want of room.

    Raises:
        InputError: as :func:`build_sequences`.
    """

    def __init__(
        self,
        model: Any,
        rollouts: Sequence[Rollout],
        place: Path | None = None,
        rule: str = "prefix",
        *,
        batches: Sequence[Members] | None = None,
        optional: bool = False,
    ) -> None:
        self.name, self.tokenizer, self.identity = model.name, model.tokenizer, model.identity
        self.width, self.max_positions, self.output_layer = model.width, model.max_positions, model.output_layer
        self.length_factors, self.placeholder_ids = model.length_factors, model.placeholder_ids
        self.readable = model.readable
        self._model, self._place, self._rule = model, place, rule
        self._batches, self._optional = batches, optional
        self.refused = False
        self._batch_of = {one.rollout: number for number, (some, _) in enumerate(batches or ()) for one in some}
        self._known = np.zeros(len(rollouts), dtype=bool)
        self._states: Tensor | None = None
        self._compute_only(build_sequences(rollouts, [model]) if batches is None else _in_order(batches))

    def _compute_only(self, sequences: list[StateSequence]) -> None:
        """Whose states the model computes, before any is."""
        self._sequences = sequences
        self._counts = np.zeros(len(self._known), dtype=np.int64)
        self._counts[[one.rollout for one in sequences]] = [len(one.positions) for one in sequences]
        self._ends = np.cumsum(self._counts)
        self._left = len(sequences)

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
        if self._batches is not None:
            self._fill(self._batches, progress)
            return
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

    @property
    def whole(self) -> bool:
        """Whether all states are there, so that the model is not needed any more, nor held."""
        return self._model is None

    def state_hidden(self, members: Sequence[StateSequence], shared: int) -> Tensor:
        """Hidden states of some rollouts, one after another, [n, d], where the output layer is.

        Args:
            shared: as for :func:`state_hidden`.
        """
        found: dict[int, Tensor] = {}
        for some, alike in self._lacking(members, shared):
            hidden = state_hidden(self._model, some, alike, self._rule)
            self._keep(some, hidden)
            if [one.rollout for one in some] == [one.rollout for one in members]:
                return hidden
            found |= _by_rollout(some, hidden)
        held = {one.rollout: self._held(one) for one in members if one.rollout not in found}
        pieces = [(found | held)[one.rollout] for one in members]
        return torch.cat([piece.to(self.output_layer.weight.device) for piece in pieces])

    def _lacking(self, members: Sequence[StateSequence], shared: int) -> list[Members]:
        """What is to be computed so that the states of some rollouts are there."""
        missing = [one for one in members if not self._known[one.rollout]]
        if self._batches is None:
            return [(missing, shared)] if missing else []
        return [self._batches[number] for number in dict.fromkeys(self._batch_of[one.rollout] for one in missing)]

    def _held(self, sequence: StateSequence) -> Tensor:
        assert self._states is not None
        return self._states[self._rows(sequence)]

    def _keep(self, members: Sequence[StateSequence], hidden: Tensor) -> None:
        if self._states is None and not self._take_room(hidden):
            return
        for rollout, states in _by_rollout(members, hidden.cpu()).items():
            assert self._states is not None
            self._states[self._ends[rollout] - len(states) : self._ends[rollout]] = states
            self._known[rollout] = True
        self._left -= len(members)
        if not self._left:
            self._model = None

    def _take_room(self, hidden: Tensor) -> bool:
        """Whether there is room for all states, which is taken; asked once."""
        if self.refused:
            return False
        shape = int(self._counts.sum()), hidden.shape[1]
        try:
            if self._optional:
                _check_share(shape[0] * shape[1] * hidden.dtype.itemsize, self._place)
            self._states = _on_disk(shape, hidden.dtype, self._place)
        except OutputError as error:
            if not self._optional:
                raise
            self.refused = True
            warn_in_passing(f"{error}; those of {self.name} are computed again for every checkpoint")
        return not self.refused

    def _rows(self, sequence: StateSequence) -> slice:
        end = int(self._ends[sequence.rollout])
        return slice(end - len(sequence.positions), end)


def _in_order(batches: Sequence[Members]) -> list[StateSequence]:
    return sorted((one for members, _ in batches for one in members), key=lambda one: one.rollout)


def _by_rollout(members: Sequence[StateSequence], hidden: Tensor) -> dict[int, Tensor]:
    parts = hidden.split([len(one.positions) for one in members])
    return {one.rollout: part for one, part in zip(members, parts, strict=True)}


def _check_share(size: int, place: Path | None) -> None:
    """Refuse so many bytes where they take more than their share of a disk.

    Raises:
        OutputError: they do.
    """
    free = disk_usage(place or gettempdir()).free
    if size > SHARE * free:
        raise OutputError(
            f"hidden states: {size / 1e9:.1f} GB are more than {SHARE:.0%} of what is free on the disk of "
            f"{place or 'temporary files'} ({free / 1e9:.1f} GB)"
        )


def _on_disk(shape: tuple[int, int], dtype: torch.dtype, place: Path | None) -> Tensor:
    """A tensor in a mapped file without a name; the system drops what of it is in memory when others need the room.

    Raises:
        OutputError: there is no room.
    """
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
