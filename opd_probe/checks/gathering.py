"""From two models and rollouts to the evidence: each model is loaded once, the student first, and may go before the
teacher comes."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.checks.evidence import CheckOptions, Columns, Evidence, Floats, Side, teacher_scores
from opd_probe.engine.replay import Progress, Replay, ReplaySettings
from opd_probe.engine.sequences import build_sequences, skip_reason
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import InputError, OpdProbeError, OutOfMemoryError
from opd_probe.models.loading import LoadedModel, eos_ids_of
from opd_probe.models.vocabulary import SharedVocabulary, shared_vocabulary
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.prompts import encode_messages
from opd_probe.types import Rollout

Stage = Callable[[str], Progress | None]
"""Called with the name of a piece of work that starts; returns where its progress goes."""


def silent(task: str) -> None:
    """A stage of which nothing is reported."""
    del task


def gather(
    student: Callable[[], LoadedModel],
    teacher: Callable[[], LoadedModel],
    rollouts: Sequence[Rollout],
    options: CheckOptions,
    *,
    stage: Stage = silent,
    place: Path | None = None,
) -> Evidence:
    """The evidence on a pair of models.

    Args:
        student, teacher: load the models. Nothing here holds on to the student once its states are on disk.
        rollouts: a handful; text is encoded with the student's tokenizer.
        place: the directory whose disk takes the student's hidden states; None: the system's.

    Raises:
        OpdProbeError: a model that cannot be loaded, or rollouts that cannot be encoded.
    """
    side, encoded, kept = _run_student(student(), rollouts, options, stage, place)
    return _Gathering(side, teacher(), encoded, kept, options, stage).evidence()


def side_of(model: LoadedModel) -> Side:
    """What the checks know of a loaded model."""
    generation = eos_ids_of(getattr(model.model, "generation_config", None), None)
    return Side(model.name, model.tokenizer, model.width, model.max_positions, model.eos_ids, generation)


def _run_student(
    model: LoadedModel, rollouts: Sequence[Rollout], options: CheckOptions, stage: Stage, place: Path | None
) -> tuple[Side, list[Rollout], tuple[StoredModel, StoredModel] | str]:
    """The student in outline, the rollouts with ids, and its hidden states in batches and one rollout at a time."""
    encoded = encode_rollouts(rollouts, model.tokenizer)
    readable = without(encoded, unreadable(encoded, [model]))
    try:
        batched, alone = StoredModel(model, readable, place), StoredModel(model, readable, place)
    except InputError as error:
        return side_of(model), encoded, str(error)
    batched.fill(options.batch_tokens, stage("student, in batches"))
    alone.fill(1, stage("student, one rollout at a time"))
    return side_of(model), encoded, (batched, alone)


def unreadable(rollouts: Sequence[Rollout], models: Sequence[Any]) -> dict[int, str]:
    """By index, why a rollout has no states or cannot be read by one of the models."""
    reasons: dict[int, str] = {}
    for index, rollout in enumerate(rollouts):
        if reason := skip_reason(rollout):
            reasons[index] = f"rollout {rollout.id!r}: {reason}"
            continue
        try:
            build_sequences([rollout], models)
        except InputError as error:
            reasons[index] = str(error)
    return reasons


def without(rollouts: Sequence[Rollout], indices: Container[int]) -> list[Rollout]:
    """The rollouts, those at ``indices`` emptied: a replay skips them, and the others keep their places."""
    return [
        replace(rollout, response_ids=(), response_mask=None, logprobs=None) if index in indices else rollout
        for index, rollout in enumerate(rollouts)
    ]


class _Gathering:
    """The part that needs the teacher; collects why a piece of it could not be had."""

    def __init__(
        self,
        side: Side,
        teacher: LoadedModel,
        rollouts: list[Rollout],
        kept: tuple[StoredModel, StoredModel] | str,
        options: CheckOptions,
        stage: Stage,
    ) -> None:
        self.side, self.teacher, self.rollouts, self.kept = side, teacher, rollouts, kept
        self.options, self.stage = options, stage
        self.missing: dict[str, str] = {}

    def evidence(self) -> Evidence:
        vocabulary: SharedVocabulary | None = self._part("vocabulary", self._vocabulary)
        known = Evidence(
            self.side,
            side_of(self.teacher),
            self.rollouts,
            self.options,
            left_out=unreadable(self.rollouts, [self.side, self.teacher]),
            vocabulary=vocabulary,
            student_prompts=self._prompts("student_prompts", self.side.tokenizer),
            teacher_prompts=self._prompts("teacher_prompts", self.teacher.tokenizer),
            missing=self.missing,
        )
        if vocabulary is None:
            self.missing["states"] = "a replay refuses this pair, see the line 'tokenizers'"
            return known
        if isinstance(self.kept, str):
            self.missing["states"] = self.kept
            return known
        readable, ids = without(self.rollouts, known.left_out), vocabulary.ids
        batched, single = self.kept
        states = self._part("states", lambda: self._replay(batched, readable, ids, self.options.batch_tokens))
        if not states:
            return known
        alone = self._part("alone", lambda: self._replay(single, readable, ids, 1))
        under = self._part("under_teacher_prompt", lambda: self._own_prompt(known.teacher_prompts, states, ids))
        return replace(known, states=states, alone=alone or {}, under_teacher_prompt=under or {})

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        """A part of the evidence; None, and the reason in :attr:`missing`, when bad input stands in its way."""
        try:
            return make()
        except OutOfMemoryError:
            raise
        except OpdProbeError as error:
            self.missing[name] = str(error)
            return None

    def _vocabulary(self) -> Any:
        return shared_vocabulary(self.side, self.teacher, allow_special_mismatch=self.options.allow_special_mismatch)

    def _prompts(self, name: str, tokenizer: Any) -> dict[int, list[int]]:
        """What a template makes of the messages of each rollout that has some; none when it refuses one of them."""
        talks = {i: (r.id, r.extra["messages"]) for i, r in enumerate(self.rollouts) if r.extra.get("messages")}

        def encode() -> dict[int, list[int]]:
            return {i: encode_messages(f"rollout {name!r}", talk, tokenizer) for i, (name, talk) in talks.items()}

        return self._part(name, encode) or {}

    def _replay(
        self, student: StoredModel, rollouts: list[Rollout], ids: NDArray[np.int64], batch_tokens: int
    ) -> dict[int, Columns]:
        settings = self._settings(min(self.options.k, len(ids)), batch_tokens)
        progress = self.stage(f"teacher, {'one rollout at a time' if batch_tokens == 1 else 'in batches'}")
        found = dict(Replay(student, self.teacher, rollouts, ids, settings).states(progress=progress))
        return dict(sorted(found.items()))

    def _settings(self, k: int, batch_tokens: int) -> ReplaySettings:
        return ReplaySettings(k, self.options.temperature, batch_tokens=batch_tokens, compiled=False)

    def _own_prompt(
        self, prompts: Mapping[int, Sequence[int]], states: Mapping[int, Columns], ids: NDArray[np.int64]
    ) -> dict[int, Floats]:
        """The teacher's log-probabilities under the prompts of its own template; where these are the student's, the
        ones that are there already."""
        known = {index: scores for index, scores in teacher_scores(states).items() if index in prompts}
        other = {i for i in known if tuple(prompts[i]) != tuple(self.rollouts[i].prompt_ids)}
        if not other:
            return known
        moved = [
            replace(rollout, prompt_ids=tuple(prompts[i])) if i in other else rollout
            for i, rollout in enumerate(self.rollouts)
        ]
        moved = without(moved, set(range(len(moved))) - other | unreadable(moved, [self.teacher]).keys())
        kept = StoredModel(self.teacher, moved)  # as its own student: it runs once
        kept.fill(self.options.batch_tokens, self.stage("teacher, under its own prompt"))
        scored = dict(Replay(kept, kept, moved, ids, self._settings(1, self.options.batch_tokens)).states())
        return {index: scores for index, scores in known.items() if index not in other} | teacher_scores(scored)
