"""From two models and rollouts to the evidence: each model is loaded once, the student first, and may go before the
teacher comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.checks.evidence import CheckOptions, Columns, Evidence, Floats, Side, teacher_scores
from opd_probe.checks.passes import (
    OneByOne,
    Prompts,
    engine,
    one_of,
    own_scores,
    prompts_of,
    refused,
    scores,
    second_paths,
    states,
    without,
)
from opd_probe.engine.replay import Progress, Replay
from opd_probe.engine.sequences import build_sequences, with_prompts
from opd_probe.engine.served import ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import InputError, OpdProbeError, OutOfMemoryError
from opd_probe.models.experts import experts_of
from opd_probe.models.loading import LoadedModel, eos_ids_of
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import SharedVocabulary, shared_vocabulary
from opd_probe.rollouts.chat import chat_variables
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.padding import special_ids_of, without_padding
from opd_probe.rollouts.prompts import encode_messages
from opd_probe.rollouts.teacher_prompts import messages_of
from opd_probe.types import Rollout

Stage = Callable[[str], Progress | None]
"""Called with the name of a piece of work that starts; returns where its progress goes."""


def silent(task: str) -> None:
    """A stage of which nothing is reported."""
    del task


@dataclass(frozen=True, slots=True)
class Pair:
    """A student and a teacher, to be loaded one after the other.

    Attributes:
        student, teacher: load them; a served teacher is just named.
        weights: loads the weights of a served teacher, to compare both; None: they are not at hand.
        prompts: what the teacher reads before each response; None: what the student read.
    """

    student: Callable[[], LoadedModel]
    teacher: Callable[[], LoadedModel | ServedModel]
    weights: Callable[[], LoadedModel] | None = None
    prompts: Prompts | None = None


def gather(
    pair: Pair,
    rollouts: Sequence[Rollout],
    options: CheckOptions,
    *,
    stage: Stage = silent,
    everything: Sequence[Rollout] = (),
) -> Evidence:
    """The evidence on a pair of models. Nothing here holds on to the student once its states are on disk.

    Args:
        rollouts: a handful; text is encoded with the student's tokenizer.
        everything: what it was taken from, for what only counts rollouts; empty: it is all there is.

    Raises:
        OpdProbeError: a model that cannot be loaded, or rollouts that cannot be encoded.
    """
    side, encoded, kept, paths = _run_student(pair.student(), rollouts, options, stage)
    teacher = pair.teacher()
    found = _Gathering(side, teacher, encoded, kept, {"student": paths}, options, stage, pair.prompts).evidence()
    found = replace(found, everything=everything)
    if not isinstance(teacher, ServedModel) or pair.weights is None or not found.states:
        return found
    model, readable = pair.weights(), without(encoded, found.left_out)
    progress = stage("the served teacher's weights")
    try:
        own = own_scores(model, readable, pair.prompts, options.batch_tokens, progress)
    except InputError as error:
        return replace(found, missing={**found.missing, "in_process": str(error)})
    return replace(found, in_process=own)


def side_of(model: LoadedModel | ServedModel) -> Side:
    """What the checks know of a model."""
    if isinstance(model, ServedModel):
        known = eos_ids_of(None, model.tokenizer)
        return Side(model.name, model.tokenizer, None, model.max_positions, known, (), served=True)
    generation = eos_ids_of(getattr(model.model, "generation_config", None), None)
    known = model.eos_ids
    return Side(
        model.name, model.tokenizer, model.width, model.max_positions, known, generation,
        placeholder_ids=model.placeholder_ids, readable=model.readable, dtype=str(model.dtype).removeprefix("torch."),
        experts=experts_of(model.model.config),
    )  # fmt: skip


def _run_student(
    model: LoadedModel, rollouts: Sequence[Rollout], options: CheckOptions, stage: Stage
) -> tuple[Side, list[Rollout], tuple[StoredModel, StoredModel] | str, frozenset[int]]:
    """The student in outline, the rollouts with ids, its hidden states in batches and one rollout at a time, and for
    which rollouts these are two paths."""
    special = special_ids_of(model.tokenizer, model.eos_ids)
    encoded = encode_rollouts(without_padding(rollouts, special, None), model.tokenizer, model.eos_ids)
    readable = without(encoded, refused(encoded, lambda _, rollout: build_sequences([rollout], [model])))
    try:
        batched, alone = StoredModel(model, readable), StoredModel(model, readable)
    except InputError as error:
        return side_of(model), encoded, str(error), frozenset()
    batched.fill(options.batch_tokens, stage("student, in batches"))
    apart = second_paths([build_sequences(readable, [model])], options.batch_tokens, model)
    alone.fill_alone(apart, stage("student, one rollout at a time"))
    return side_of(model), encoded, (batched, alone), frozenset(apart)


@dataclass
class _Gathering:
    """The part that needs the teacher; collects why a piece of it could not be had."""

    side: Side
    teacher: LoadedModel | ServedModel
    rollouts: list[Rollout]
    kept: tuple[StoredModel, StoredModel] | str
    two_paths: dict[str, frozenset[int]]
    options: CheckOptions
    stage: Stage
    prompts: Prompts | None
    missing: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def evidence(self) -> Evidence:
        vocabulary: SharedVocabulary | None = self._part("vocabulary", self._vocabulary)
        k = None if vocabulary is None else self._part("states", lambda: self._depth(vocabulary))
        known = Evidence(
            self.side,
            side_of(self.teacher),
            self.rollouts,
            self.options,
            left_out=self._left_out(vocabulary),
            vocabulary=vocabulary,
            student_prompts=self._rendered("student_prompts", self.side.tokenizer),
            teacher_prompts=self._rendered("teacher_prompts", self.teacher.tokenizer),
            unreadable=self.unreadable,
            missing=self.missing,
        )
        if vocabulary is None:
            self.missing["states"] = "a replay refuses this pair, see the line 'tokenizers'"
        if isinstance(self.kept, str):
            self.missing["states"] = self.kept
        if vocabulary is None or k is None or isinstance(self.kept, str):
            return known
        readable, ids = without(self.rollouts, known.left_out), vocabulary.ids
        batched, single = self.kept
        first = self._part("states", lambda: self._replay(batched, readable, ids, k, self.options.batch_tokens))
        if not first:
            return known
        again = self._part("alone", lambda: self._replay(single, readable, ids, k, 1))
        change = self._part("prompt_change", lambda: self._prompt_change(known, first, batched, ids, k))
        return replace(known, states=first, alone=again or {}, two_paths=self.two_paths, prompt_change=change or {})

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

    def _depth(self, vocabulary: SharedVocabulary) -> int:
        """K of the replay: as asked, but no deeper than the shared vocabulary and what a server tells."""
        k = min(self.options.k, vocabulary.size)
        return self.teacher.allowed(k) if isinstance(self.teacher, ServedModel) else k

    def _left_out(self, vocabulary: SharedVocabulary | None) -> dict[int, str]:
        """What a replay of this pair would refuse; without a shared vocabulary, what either model cannot read."""

        def build(index: int, rollout: Rollout) -> None:
            if vocabulary is None:
                build_sequences([rollout], [side for side in (self.side, side_of(self.teacher)) if not side.served])
            else:
                settings = self._settings(1, self.options.batch_tokens)
                engine(self.side, self.teacher, [rollout], vocabulary.ids, settings, one_of(self.prompts, index))

        return refused(self.rollouts, build)

    def _rendered(self, name: str, tokenizer: Any) -> dict[int, list[int]]:
        """What a template makes of the messages of each rollout that has some; none when it refuses one of them."""
        places = {i: f"rollout {r.id!r}" for i, r in enumerate(self.rollouts) if r.extra.get("messages")}

        def encode() -> dict[int, list[int]]:
            return {
                i: encode_messages(
                    place,
                    messages_of(place, self.rollouts[i]),
                    tokenizer,
                    variables=chat_variables(place, self.rollouts[i].extra),
                )
                for i, place in places.items()
            }

        return self._part(name, encode) or {}

    def _settings(self, k: int, batch_tokens: int) -> ReplaySettings:
        return ReplaySettings(k, self.options.temperature, batch_tokens=batch_tokens, compiled=False)

    def _replay(
        self, student: StoredModel, rollouts: list[Rollout], ids: NDArray[np.int64], k: int, batch_tokens: int
    ) -> dict[int, Columns]:
        alone = batch_tokens == 1
        progress = self.stage(f"teacher, {'one rollout at a time' if alone else 'in batches'}")
        settings, teacher = self._settings(k, batch_tokens), self.teacher
        if not alone:
            run = engine(student, teacher, rollouts, ids, settings, self.prompts)
            found = states(run, progress)
            if isinstance(run, ServedReplay):
                self.unreadable |= run.unreadable()
            return found
        if isinstance(teacher, ServedModel):
            return states(engine(student, OneByOne(teacher), rollouts, ids, settings, self.prompts), progress)
        read = rollouts if self.prompts is None else with_prompts(rollouts, self.prompts)
        sides = Replay(student, teacher, rollouts, ids, settings, self.prompts).sides
        apart = second_paths(sides, self.options.batch_tokens, teacher)
        self.two_paths["teacher"] = frozenset(apart)
        kept = StoredModel(teacher, read)
        kept.fill_alone(apart, progress)
        return states(Replay(student, kept, rollouts, ids, settings, self.prompts), None)

    def _prompt_change(
        self, known: Evidence, first: Mapping[int, Columns], batched: StoredModel, ids: NDArray[np.int64], k: int
    ) -> dict[int, Floats]:
        """log q of the states under the prompt of the teacher's own less that under the student's.

        Its own is the one that it was given, else the one that its template makes; where that is the student's, the
        change is 0 and nothing is run.
        """
        given = None if self.prompts is None else dict(enumerate(self.prompts))
        own = {i: ids for i, ids in (known.teacher_prompts if given is None else given).items() if i in first}
        other = {i for i, prompt in own.items() if tuple(prompt) != tuple(self.rollouts[i].prompt_ids)}
        settings = self._settings(k, self.options.batch_tokens)
        read = prompts_of(self.rollouts, own if given is None else {})

        def build(index: int, rollout: Rollout) -> None:
            engine(self.side, self.teacher, [rollout], ids, settings, one_of(read, index))

        left = (set(range(len(self.rollouts))) - other) | refused(self.rollouts, build).keys()
        there = teacher_scores(first)
        change = {index: np.zeros_like(there[index]) for index in own.keys() - other}
        if len(left) < len(self.rollouts):
            run = engine(batched, self.teacher, without(self.rollouts, left), ids, settings, read)
            found = scores(run, self.stage("teacher, under the other prompt"))
            sign = 1.0 if given is None else -1.0
            change |= {index: sign * (values - there[index]) for index, values in found.items()}
        return dict(sorted(change.items()))
