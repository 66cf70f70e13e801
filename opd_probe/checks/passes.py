"""One pass of a pair over a handful of rollouts, whether the teacher's weights are here or behind HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.checks.evidence import Columns, Floats, teacher_scores
from opd_probe.engine.replay import Progress, Replay
from opd_probe.engine.sequences import StateSequence, sequence_batches, skip_reason, with_prompts
from opd_probe.engine.served import ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import InputError
from opd_probe.models.loading import LoadedModel
from opd_probe.models.served.model import ServedModel
from opd_probe.types import Rollout

Prompts = Sequence[Sequence[int]]
"""For each rollout what the teacher reads before the response."""


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A served model that is asked about one sequence at a time."""

    served: ServedModel

    @property
    def name(self) -> str:
        """For messages."""
        return self.served.name

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest sequence that it scores."""
        return self.served.max_positions

    def scores(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], k: int) -> Iterator[tuple[int, Any]]:
        """As of a :class:`ServedModel`."""
        return self.served.scores(sequences, k, at_once=1)


def engine(
    student: Any,
    teacher: Any,
    rollouts: Sequence[Rollout],
    ids: NDArray[np.int64],
    settings: ReplaySettings,
    prompts: Prompts | None,
) -> Replay | ServedReplay:
    """The replay of a pair.

    Args:
        student, teacher: what is to be run; to see what a replay refuses, both in outline.

    Raises:
        InputError: what it refuses.
    """
    kind = ServedReplay if isinstance(teacher, (ServedModel, OneByOne)) else Replay
    return kind(student, teacher, rollouts, ids, settings, prompts)


def states(run: Replay | ServedReplay, progress: Progress | None) -> dict[int, Columns]:
    """By rollout index, the columns of a trace.

    Raises:
        OpdProbeError: a server without an answer, or logits that are not finite.
    """
    if isinstance(run, Replay):
        return dict(sorted(run.states(progress=progress)))
    none = np.zeros(len(run.rollouts), dtype=bool)
    told = dict(run.answers(none, progress))
    return dict(sorted(run.states(none, told.__getitem__, progress or _unseen)))


def scores(run: Replay | ServedReplay, progress: Progress | None) -> dict[int, Floats]:
    """By rollout index, the teacher's log-probabilities of the states. A server is asked, and no student runs.

    Raises:
        OpdProbeError: as :func:`states`.
    """
    if isinstance(run, Replay):
        return teacher_scores(states(run, progress))
    return teacher_scores(dict(run.answers(np.zeros(len(run.rollouts), dtype=bool), progress)))


def own_scores(
    model: LoadedModel,
    rollouts: Sequence[Rollout],
    prompts: Prompts | None,
    batch_tokens: int,
    progress: Progress | None,
) -> dict[int, Floats]:
    """By rollout index, a model's log-probabilities of the states over its whole vocabulary.

    Raises:
        OpdProbeError: as :func:`states`.
    """
    read = rollouts if prompts is None else with_prompts(rollouts, prompts)
    kept = StoredModel(model, read)  # as its own student: it runs once
    kept.fill(batch_tokens, progress)
    settings = ReplaySettings(1, batch_tokens=batch_tokens, compiled=False)
    return teacher_scores(states(Replay(kept, kept, read, np.arange(model.width), settings), None))


def second_paths(sides: Sequence[Sequence[StateSequence]], batch_tokens: int, model: LoadedModel) -> dict[int, int]:
    """The rollouts for which there is another right path through a model than that of a replay, when they go alone, and
    for each how many tokens at its start to run apart: its prompt, where the replay does not do so and it is exact.

    Args:
        sides: as for :func:`sequence_batches`; the model reads the last.
    """
    found: dict[int, int] = {}
    for batch in sequence_batches(sides, batch_tokens):
        members, shared = batch[-1]
        lengths = Counter(len(member.input_ids) for member in members)
        for member in members:
            beside = {"padded": len(members), "of one length": lengths[len(member.input_ids)], "alone": 1}
            apart = 0 if shared else member.prompt_length - 1
            if apart and model.cache_for("shared") is None:
                apart = 0
            if apart or beside[model.paths.batching] > 1:
                found[member.rollout] = apart
    return found


def refused(rollouts: Sequence[Rollout], build: Any) -> dict[int, str]:
    """By index, why a rollout has no states, or what ``build`` raises on it.

    Args:
        build: called with the index and the rollout; raises :class:`InputError` where it cannot be read.
    """
    reasons: dict[int, str] = {}
    for index, rollout in enumerate(rollouts):
        if reason := skip_reason(rollout):
            reasons[index] = f"rollout {rollout.id!r}: {reason}"
            continue
        try:
            build(index, rollout)
        except InputError as error:
            reasons[index] = str(error)
    return reasons


def without(rollouts: Sequence[Rollout], indices: Container[int]) -> list[Rollout]:
    """The rollouts, those at ``indices`` emptied: a replay skips them, and the others keep their places."""
    return [
        replace(rollout, response_ids=(), response_mask=None, logprobs=None) if index in indices else rollout
        for index, rollout in enumerate(rollouts)
    ]


def _unseen(done: int, total: int) -> None:
    del done, total


def one_of(prompts: Prompts | None, index: int) -> Prompts | None:
    """The prompt of one rollout, as a list of one."""
    return None if prompts is None else [prompts[index]]


def prompts_of(rollouts: Sequence[Rollout], known: Mapping[int, Sequence[int]]) -> Prompts:
    """The known prompts, and the rollouts' own where none is known."""
    return [known.get(index, rollout.prompt_ids) for index, rollout in enumerate(rollouts)]
