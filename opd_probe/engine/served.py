"""Replay against a teacher behind HTTP, of which nothing is known but its top list and the sampled token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from opd_probe.engine.replay import Progress, ReplayModel, by_rollout, located, memory_advice
from opd_probe.engine.scoring import Columns, VocabularyMap, check_rest, default_chunk, rows_of
from opd_probe.engine.sequences import (
    StateSequence,
    build_sequences,
    check_sampled,
    pending_batches,
    state_counts,
    with_prompts,
)
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel, state_hidden
from opd_probe.errors import InputError, LogitError, ServerError
from opd_probe.models.served.answers import NO_LOGPROBS, Told, misnormalised
from opd_probe.stats.projection import OutputProjection, mass_outside
from opd_probe.stats.scratch import Scratch
from opd_probe.stats.single import single_statistics
from opd_probe.stats.threads import fitting_threads
from opd_probe.stats.topk import NO_ID, NO_PROBABILITY
from opd_probe.types import Rollout

UNKNOWN = ("teacher_entropy", "reverse_kl", "forward_kl", "jsd", "teacher_mass_outside")
"""Columns of a trace that a served teacher leaves unknown: NaN at every state."""

FAULTY = 0.5
"""Share of states without a list beyond which a server is one of another kind."""

TOLD = ("teacher_top_ids", "teacher_top_logprobs", "teacher_logprob")
"""Columns that come from the server."""


class Scorer(Protocol):
    """What the engine needs of a served model."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest sequence that it scores."""
        ...

    def scores(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], k: int) -> Iterator[tuple[int, Told]]:
        """Yield (index, answer) for sequences of ids and the places in them that are asked about."""
        ...


def refuse_temperature(temperature: float) -> None:
    """Refuse what a part of a distribution cannot be scored at.

    Raises:
        InputError: the temperature is not 1.
    """
    if temperature != 1.0:
        raise InputError(
            f"temperature = {temperature}: a served teacher tells a part of its distribution at temperature 1, of "
            "which no other can be made; leave it at 1, or load the teacher from its weights"
        )


class ServedReplay:
    """One student and a served teacher over one list of rollouts: first the server's answers, then the student.

    Every state's teacher columns hold what the server told, on ids of the shared vocabulary: others are taken out of
    its lists, which end earlier then (:data:`opd_probe.stats.topk.NO_ID`, NaN). Ids of probability 0 are taken out too
    (−inf in place of NaN: the list is whole). ``teacher_logprobs_at_student_top`` is known at the ids of the teacher's
    list, at the sampled token, and beside a whole list everywhere, and NaN elsewhere; the columns of :data:`UNKNOWN`
    are NaN.

    Args:
        student: a loaded model, or a :class:`StoredModel` of these rollouts.
        shared_ids: int64, ascending: the student's distribution is normalised on them. The teacher's log-probabilities
            are over its whole vocabulary, and stay so.
        teacher_prompts: as for :class:`opd_probe.engine.replay.Replay`.

    Raises:
        InputError: see :func:`opd_probe.engine.sequences.build_sequences`; a sequence too long for the server; or a
            temperature other than 1.
    """

    def __init__(
        self,
        student: ReplayModel | StoredModel,
        teacher: Scorer,
        rollouts: Sequence[Rollout],
        shared_ids: NDArray[np.int64],
        settings: ReplaySettings,
        teacher_prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        refuse_temperature(settings.temperature)
        self.student, self.teacher, self.rollouts, self.settings = student, teacher, rollouts, settings
        self.shared_ids = shared_ids
        self.sequences = build_sequences(rollouts, [student])
        check_sampled(rollouts, self.sequences, [student])
        read = self.sequences
        if teacher_prompts is not None:
            read = build_sequences(with_prompts(rollouts, teacher_prompts), [], "the teacher's ")
        self._asked = {sequence.rollout: sequence for sequence in read}
        self.faults: dict[tuple[int, int], str] = {}  # what came in place of a list, by rollout and state
        self._check_lengths()

    def _check_lengths(self) -> None:
        limit = self.teacher.max_positions
        for sequence in self._asked.values():
            length = len(sequence.input_ids) + 1  # with the last sampled token
            if limit is not None and length > limit:
                raise InputError(
                    f"rollout {self.rollouts[sequence.rollout].id!r}: prompt and response have {length} tokens, "
                    f"{self.teacher.name} scores {limit} at most; drop the rollout or serve with a longer context"
                )

    @property
    def state_counts(self) -> list[int]:
        """The number of states of every rollout, 0 for a skipped one."""
        return state_counts(self.rollouts, self.sequences)

    def answers(
        self,
        answered: NDArray[np.bool_],
        progress: Progress | None = None,
        unit: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Columns]]:
        """Yield (rollout index, the columns :data:`TOLD` of its states) as the server answers.

        Args:
            answered: bool [n_rollouts], rollouts to leave out.
            progress: called with (states that the server told, states in all).
            unit: the rollouts to ask for; None: all.

        Raises:
            ServerError: no usable answer, with the rollout that it was asked for; numbers that are no
                log-probabilities; or no list of most states. What came before has been yielded.
        """
        wanted = self._asked if unit is None else {index: self._asked[index] for index in unit if index in self._asked}
        todo = [sequence for sequence in wanted.values() if not answered[sequence.rollout]]
        todo.sort(key=lambda sequence: -len(sequence.input_ids))
        total = sum(len(sequence.positions) for sequence in self.sequences)
        most = FAULTY * sum(len(sequence.positions) for sequence in wanted.values())
        told = sum(len(sequence.positions) for sequence in self.sequences if answered[sequence.rollout])
        if progress is not None:
            progress(told, total)
        held = []
        faulty = 0
        if unit is None:
            self.faults.clear()
        try:
            for number, answer in self.teacher.scores(_Asked(todo), self.settings.k):
                sequence = todo[number]
                self._check_logprobs(answer, sequence)
                columns = self._on_shared(answer, sequence)
                if answer.faults:  # kept by nobody until it is clear that the server is one that tells lists
                    held.append((sequence, columns))
                    self.faults |= {(sequence.rollout, state): what for state, what in answer.faults.items()}
                    faulty += len(answer.faults)
                    if faulty > most:
                        break
                    continue
                yield sequence.rollout, columns
                told += len(sequence.positions)
                if progress is not None:
                    progress(told, total)
        except ServerError as error:
            if error.index is None:
                raise
            raise ServerError(f"{self._named(todo[error.index])}: {error}") from None
        if faulty > most:
            where, came = next(iter(self.unreadable().items()))
            raise ServerError(
                f"{self.teacher.name}: told no list of log-probabilities of {faulty:,} states, of "
                f"{total:,} in all; of {where}, it told {came}; expected the layout of vLLM or SGLang"
            )
        yield from ((sequence.rollout, columns) for sequence, columns in held)
        if progress is not None:
            progress(told + sum(len(sequence.positions) for sequence, _ in held), total)

    def _named(self, sequence: StateSequence) -> str:
        """A rollout and how long what is asked of it is."""
        return f"rollout {self.rollouts[sequence.rollout].id!r} ({len(sequence.input_ids) + 1:,} tokens)"

    def _where(self, rollout: int, state: int) -> str:
        """A state's rollout, and its position in the response."""
        return f"rollout {self.rollouts[rollout].id!r}, position {int(self._asked[rollout].positions[state])}"

    def unreadable(self) -> dict[str, str]:
        """What came in place of a state's list, by where that is."""
        return {self._where(*state): came for state, came in sorted(self.faults.items())}

    def place_of(self, row: int) -> str:
        """Where a state is, with what came in place of its list, if that is known.

        Args:
            row: of all states.
        """
        offsets = np.cumsum([0, *self.state_counts])
        rollout = int(np.searchsorted(offsets, row, side="right")) - 1
        state = row - int(offsets[rollout])
        came = self.faults.get((rollout, state))
        return self._where(rollout, state) + ("" if came is None else f" ({came})")

    def _check_logprobs(self, answer: Told, sequence: StateSequence) -> None:
        """Refuse numbers that are no log-probabilities.

        Raises:
            ServerError: names the first such state.
        """
        found = misnormalised(answer, self.student.width)
        if found is not None:
            state, why = found
            raise ServerError(f"{self.teacher.name}, {self._where(sequence.rollout, state)}: {why}; {NO_LOGPROBS}")

    def _on_shared(self, answer: Told, sequence: StateSequence) -> Columns:
        """What was told, without ids of probability 0 and without those that the student does not share."""
        ids, logprobs = answer.top_ids, answer.top_logprobs
        possible = ~(logprobs <= logprobs.max(1, keepdims=True, initial=-np.inf) - NO_PROBABILITY)
        wanted = np.isin(ids, self.shared_ids) & possible
        if not wanted.all():
            order = np.argsort(~wanted, axis=1, kind="stable")
            kept = np.take_along_axis(wanted, order, 1)
            ids = np.where(kept, np.take_along_axis(ids, order, 1), NO_ID).astype(np.int32)
            # Behind an id of probability 0 there is no other; behind a foreign one nothing is known.
            ended = np.where(possible.all(1, keepdims=True), np.nan, -np.inf)
            logprobs = np.where(kept, np.take_along_axis(logprobs, order, 1), ended).astype(np.float32)
        sampled = np.where(np.isin(sequence.token_ids, self.shared_ids), answer.logprob, np.nan)
        return {
            "teacher_top_ids": ids,
            "teacher_top_logprobs": logprobs,
            "teacher_logprob": sampled.astype(np.float32),
        }

    def states(
        self,
        done: NDArray[np.bool_],
        told: Callable[[int], Mapping[str, NDArray[np.generic]]],
        progress: Progress,
        unit: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Columns]]:
        """Yield (rollout index, columns of its states), longest sequences first.

        Args:
            done: bool [n_rollouts], rollouts to leave out; the batches are those of all.
            told: for a rollout, its columns :data:`TOLD`.
            progress: called with (states done, states in all).
            unit: the rollouts to look at; None: all.

        Raises:
            LogitError, OutOfMemoryError: as :meth:`opd_probe.engine.replay.Replay.states`.
        """
        total = sum(len(sequence.positions) for sequence in self.sequences)
        units = None if unit is None else [unit]
        pending = pending_batches([self.sequences], self.settings.batch_tokens, done, units)
        finished = sum(len(sequence.positions) for sequence in self.sequences if done[sequence.rollout])
        progress(finished, total)
        if not pending:
            return
        scorer = _StudentScorer(self.student, self.shared_ids, self.settings)
        for ((members, shared),) in pending:
            new = sum(len(sequence.positions) for sequence in members if not done[sequence.rollout])
            parts = [told(sequence.rollout) for sequence in members]
            teacher = {name: np.concatenate([part[name] for part in parts]) for name in TOLD}
            with memory_advice(), fitting_threads(self.student.output_layer.weight):
                columns = self._score(scorer, members, shared, teacher)
            yield from by_rollout(members, columns)
            finished += new
            progress(finished, total)

    @torch.inference_mode()
    def _score(
        self, scorer: _StudentScorer, members: Sequence[StateSequence], shared: int, teacher: Columns
    ) -> Columns:
        hidden = state_hidden(self.student, members, shared, self.settings.length_factors)
        tokens = np.concatenate([sequence.token_ids for sequence in members])
        try:
            return scorer.score(hidden, tokens, teacher)
        except LogitError as error:
            raise located(error, members, self.rollouts) from None


class _Asked(Sequence[tuple[list[int], list[int]]]):
    """What a server is asked of each rollout: its ids up to the last sampled token, and the places of sampled tokens.

    Made when it is looked up: as lists of numbers, all rollouts together would take many times their memory.
    """

    def __init__(self, sequences: Sequence[StateSequence]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: Any) -> Any:
        sequence = self._sequences[index]
        return [*sequence.input_ids.tolist(), int(sequence.token_ids[-1])], (sequence.state_index + 1).tolist()


class _StudentScorer:
    """Scores states from the student's hidden states and what the teacher told, chunk by chunk."""

    def __init__(
        self, student: ReplayModel | StoredModel, shared_ids: NDArray[np.int64], settings: ReplaySettings
    ) -> None:
        layer = student.output_layer
        device = layer.weight.device
        self.projection = OutputProjection(
            layer.weight, layer.bias, torch.from_numpy(shared_ids), layer.scale, layer.softcap
        )
        self.vocabulary = VocabularyMap(shared_ids, student.width, device)
        self.chunk = settings.chunk or default_chunk(student.width, device)
        self.k, self.device = settings.k, device
        self._scratch = Scratch()

    def score(self, hidden: torch.Tensor, tokens: NDArray[np.int64], teacher: Columns) -> Columns:
        """Columns of N states from hidden states [N, d], the sampled ids [N] and the teacher's columns [N, …]."""
        parts = []
        for start in range(0, len(tokens), self.chunk):
            rows = slice(start, start + self.chunk)
            try:
                parts.append(self._chunk(hidden[rows], tokens[rows], rows_of(teacher, rows)))
            except LogitError as error:
                raise LogitError(str(error), start + (error.row or 0)) from None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _chunk(self, hidden: torch.Tensor, tokens: NDArray[np.int64], teacher: Columns) -> Columns:
        logits, rest = self.projection.logits(hidden, self._scratch, "student")
        top = torch.from_numpy(teacher["teacher_top_ids"].astype(np.int64)).to(self.device)
        at = self.vocabulary.columns(top.clamp(min=0)).masked_fill(top < 0, NO_ID)
        sampled = self.vocabulary.columns(torch.from_numpy(tokens).to(self.device))
        statistics = single_statistics(logits, sampled, at, self.k)
        check_rest(rest, "student")
        ids = self.vocabulary.ids(statistics.top_ids).to(torch.int32).cpu().numpy()
        unknown = np.full(len(tokens), np.nan, dtype=np.float32)
        at_teacher = statistics.logprobs_at.cpu().numpy()
        at_teacher[np.isneginf(teacher["teacher_top_logprobs"])] = -np.inf  # no id there
        return {
            **teacher,
            **dict.fromkeys(UNKNOWN, unknown),
            "token_id": tokens.astype(np.int32),
            "student_top_ids": ids,
            "student_top_logprobs": statistics.top_logprobs.cpu().numpy(),
            "student_logprobs_at_teacher_top": at_teacher,
            "student_logprob": statistics.logprob.cpu().numpy(),
            "student_entropy": statistics.entropy.cpu().numpy(),
            "student_mass_outside": mass_outside(rest, statistics.log_partition).cpu().numpy(),
            "teacher_logprobs_at_student_top": known_at(ids, tokens, teacher),
        }


def known_at(
    ids: NDArray[np.int32], tokens: NDArray[np.int64], teacher: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """The teacher's log-probabilities at ids [n, K], as far as it told them: of its own list and the sampled token, and
    −inf at what a whole list does not hold and where there is no id."""
    listed, values = teacher["teacher_top_ids"], teacher["teacher_top_logprobs"]
    whole = np.isneginf(values[:, -1:])
    found = np.where(whole | (ids < 0), np.float32(-np.inf), np.float32(np.nan))
    sampled = ids == tokens[:, None]
    found[sampled] = np.broadcast_to(teacher["teacher_logprob"][:, None], ids.shape)[sampled]
    listed = np.where(listed < 0, NO_ID - 1, listed)  # equal to no id, nor to the end of the other list
    for rank in range(listed.shape[1]):
        same = ids == listed[:, rank, None]
        found[same] = np.broadcast_to(values[:, rank, None], ids.shape)[same]
    return found
