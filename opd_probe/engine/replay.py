"""The replay engine: both models over the same student-visited states, yielding what a trace stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.engine.scoring import Columns, StateScorer, VocabularyMap, default_chunk, rows_of
from opd_probe.engine.sequences import (
    Ints,
    Members,
    StateSequence,
    build_sequences,
    check_sampled,
    pending_batches,
    state_counts,
    with_prompts,
)
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel, state_hidden
from opd_probe.errors import LogitError, OutOfMemoryError, is_refused_allocation
from opd_probe.stats.compiled import CompiledReduction, compiling_pays, whole_tiles
from opd_probe.stats.native import building_pays
from opd_probe.stats.projection import OutputProjection
from opd_probe.stats.threads import fitting_threads
from opd_probe.types import Rollout

Progress = Callable[[int, int], None]
"""Called with (states done, states in all)."""


class Layer(Protocol):
    """A model's output layer: logits = softcap(scale · hidden · weightᵀ + bias)."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


class ReplayModel(Protocol):
    """What the engine needs of a loaded model."""

    name: str

    @property
    def width(self) -> int:
        """The width of the output layer."""
        ...

    @property
    def max_positions(self) -> int | None:
        """How many positions the model was built for, when it says."""
        ...

    @property
    def output_layer(self) -> Layer:
        """What turns hidden states into logits."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        ...

    @property
    def length_factors(self) -> Any:
        """What of it depends on the length of a call, with ``kind`` and ``boundary``; None: nothing."""
        ...

    @property
    def placeholder_ids(self) -> Sequence[int]:
        """Ids that stand for pieces of an image, a video or a sound."""
        ...

    def outputs(
        self,
        ids: Sequence[Ints],
        index: Sequence[Ints],
        shared: int = 0,
        *,
        wholes: Sequence[int] | None = None,
        rule: Any = "prefix",
    ) -> Tensor:
        """Inputs of the output layer at ascending places of several sequences whose first ``shared`` tokens are the
        same, [N, d], one sequence after another, under the factors that ``rule`` decides."""
        ...


class Replay:
    """One student and one teacher over one list of rollouts.

    Args:
        student, teacher: loaded models, or a :class:`StoredModel` of these rollouts.
        rollouts: all rollouts; those without a state are left out, see :func:`skip_reason`.
        shared_ids: int64, ascending: the ids that both models share.
        teacher_prompts: for each rollout the prompt ids that the teacher reads before the response; None: the
            student's. The responses are the same ids, so that state t of one model stands beside state t of the other.

    Raises:
        InputError: see :func:`opd_probe.engine.sequences.build_sequences` and ``with_prompts`` there.
    """

    def __init__(
        self,
        student: ReplayModel | StoredModel,
        teacher: ReplayModel | StoredModel,
        rollouts: Sequence[Rollout],
        shared_ids: NDArray[np.int64],
        settings: ReplaySettings,
        teacher_prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.student, self.teacher, self.rollouts, self.settings = student, teacher, rollouts, settings
        self.shared_ids = shared_ids
        self.sides = self._sides(teacher_prompts)
        check_sampled(rollouts, self.sequences, [student, teacher])

    def _sides(self, teacher_prompts: Sequence[Sequence[int]] | None) -> list[list[StateSequence]]:
        """What the models read: one list of sequences for both, or the student's and the teacher's."""
        if teacher_prompts is None:
            return [build_sequences(self.rollouts, [self.student, self.teacher])]
        read = with_prompts(self.rollouts, teacher_prompts)
        return [build_sequences(self.rollouts, [self.student]), build_sequences(read, [self.teacher], "the teacher's ")]

    @property
    def sequences(self) -> list[StateSequence]:
        """The rollouts that have states, as the student reads them."""
        return self.sides[0]

    @property
    def state_counts(self) -> list[int]:
        """The number of states of every rollout, 0 for a skipped one."""
        return state_counts(self.rollouts, self.sequences)

    @property
    def ways(self) -> dict[str, bool]:
        """What was decided for the whole job: whether the passes over the logits are ``compiled``, and whether a
        ``native`` product is used where the weights are bf16 on a CPU. The same for the same settings, whatever is
        left to do."""
        settings = self.settings
        states = sum(self.state_counts) if settings.job_states is None else settings.job_states
        job = states, len(self.shared_ids)
        compiled, native = settings.compiled, settings.native
        native = compiled if native is None else native
        return {
            "compiled": compiling_pays(*job, self._device) if compiled is None else compiled,
            "native": building_pays(*job) if native is None else native,
        }

    @property
    def _device(self) -> torch.device:
        """Where both models' logits meet; a model that is spread over devices takes its inputs elsewhere."""
        return self.student.output_layer.weight.device

    def states(
        self,
        done: NDArray[np.bool_] | None = None,
        progress: Progress | None = None,
        units: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Columns]]:
        """Yield (rollout index, columns of its states), longest sequences of a unit first.

        The values depend on neither the batch, its padding nor the chunk, beyond the rounding of the models'
        own matrix products.

        Args:
            done: bool [n_rollouts], rollouts to leave out; one that goes through with others is yielded again. The
                batches are those of all rollouts, so that what is left comes out to the same bits.
            progress: called after each batch.
            units: the rollouts of each unit: one after another, none together with those of another. None: all are one.

        Raises:
            LogitError: a model returned a logit that is NaN or +inf; names the rollout and the position.
            OutOfMemoryError: names the option that lowers the need.
        """
        total = sum(len(sequence.positions) for sequence in self.sequences)
        pending = pending_batches(self.sides, self.settings.batch_tokens, done, units)
        left = [s for s in self.sequences if done is None or not done[s.rollout]]
        finished = total - sum(len(sequence.positions) for sequence in left)
        if progress is not None:
            progress(finished, total)
        if not pending:
            return
        scorer = self._scorer()
        for batch in pending:
            new = sum(len(s.positions) for s in batch[0][0] if done is None or not done[s.rollout])
            with memory_advice(), fitting_threads(self.teacher.output_layer.weight):
                columns = self._score(scorer, batch)
            yield from by_rollout(batch[0][0], columns)
            finished += new
            if progress is not None:
                progress(finished, total)

    def _scorer(self) -> StateScorer:
        settings = self.settings
        ids = torch.from_numpy(self.shared_ids)
        device, ways = self._device, self.ways

        def projection(layer: Layer) -> OutputProjection:
            return OutputProjection(layer.weight, layer.bias, ids, layer.scale, layer.softcap, native=ways["native"])

        vocabulary = VocabularyMap(self.shared_ids, max(self.student.width, self.teacher.width), device)
        chunk = settings.chunk or default_chunk(max(self.student.width, self.teacher.width), device)
        if ways["compiled"] and settings.chunk is None:
            chunk = whole_tiles(chunk)
        return StateScorer(
            projection(self.student.output_layer),
            projection(self.teacher.output_layer),
            vocabulary,
            settings.k,
            temperature=settings.temperature,
            jsd=settings.jsd,
            chunk=chunk,
            reduction=CompiledReduction(chunk, device) if ways["compiled"] else None,
        )

    @torch.inference_mode()
    def _score(self, scorer: StateScorer, batch: Sequence[Members]) -> Columns:
        members, _ = batch[0]
        student = state_hidden(self.student, *batch[0], self.settings.length_factors)
        teacher = state_hidden(self.teacher, *batch[-1], self.settings.length_factors)
        tokens = torch.from_numpy(np.concatenate([s.token_ids for s in members])).to(student.device)
        try:
            return scorer.score(student, teacher, tokens)
        except LogitError as error:
            raise located(error, members, self.rollouts) from None


def by_rollout(members: Sequence[StateSequence], columns: Columns) -> Iterator[tuple[int, Columns]]:
    """Columns of a batch's states as (rollout index, columns of its states), with what the rollouts themselves say."""
    start = 0
    for sequence in members:
        stop = start + len(sequence.positions)
        values = rows_of(columns, slice(start, stop))
        values["position"] = sequence.positions.astype(np.int32)
        values["sampler_logprob"] = sequence.sampler_logprobs
        yield sequence.rollout, values
        start = stop


def located(error: LogitError, members: Sequence[StateSequence], rollouts: Sequence[Rollout]) -> LogitError:
    """An error of a batch's row as one that names rollout and position."""
    row = error.row or 0
    for sequence in members:
        if row < len(sequence.positions):
            where = f"rollout {rollouts[sequence.rollout].id!r}, position {int(sequence.positions[row])}"
            return LogitError(f"{where}: {error}; expected finite logits; check the checkpoint's weights", row)
        row -= len(sequence.positions)
    return error


@contextmanager
def memory_advice() -> Iterator[None]:
    """Say which option lowers the need when memory runs out in a replay.

    Raises:
        OutOfMemoryError: in place of what was raised inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, OutOfMemoryError) or not is_refused_allocation(error):
            raise
        raise OutOfMemoryError(
            "out of memory in a replay; lower --batch-tokens (what a batch of sequences needs), or load the "
            "weights in a smaller type with --dtype bfloat16"
        ) from None
