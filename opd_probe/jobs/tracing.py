"""One trace: what decides it, whether a stored one still fits, and making it from loaded models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.engine.provenance import command_line, float32_precision, reduced_matmul_precision, software
from opd_probe.engine.replay import Progress, Replay
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.sequences import (
    StateSequence,
    replay_sides,
    sequence_batches,
    sides_digest,
    skip_reason,
    straddling,
)
from opd_probe.engine.served import TOLD, ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import TraceError, warn_in_passing
from opd_probe.jobs.memory import memory_advice
from opd_probe.jobs.own_states import sampled_model
from opd_probe.jobs.served import (
    ANSWERS,
    answers_path,
    served_identity,
    served_states,
    tokenizer_of_served,
    told_beside,
    told_warnings,
)
from opd_probe.models.digests import tokenizer_files_digest, weights_digest
from opd_probe.models.lengths import has_length_factors
from opd_probe.models.loading import LoadedModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import SharedVocabulary, shared_vocabulary, special_ids, template_digest, text_digest
from opd_probe.output import write_bytes
from opd_probe.rollouts.files import prompt_key, rollouts_digest
from opd_probe.rollouts.grading import grade_rollout
from opd_probe.rollouts.sampling import sampling_words
from opd_probe.rollouts.teacher_prompts import TeacherPrompts
from opd_probe.runs.stored import warn_of
from opd_probe.trace import Trace, TraceSpool, read_trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION, array_columns
from opd_probe.types import LengthRule, Rollout

OUTSIDE_WARNING = 0.01
"""Mean probability outside the shared vocabulary above which a replay warns."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One trace that is asked for.

    Attributes:
        student, teacher: as for :func:`opd_probe.replay`.
        path: the file to write; None keeps the trace in memory.
        labels: JSON values to keep with it.
        teacher_prompts: what the teacher reads before each response; None: what the student read.
        template: the chat template that made the student's prompts, where it is not its tokenizer's.
        rollouts_from: the file of the rollouts, where they came from one.
    """

    student: Any
    teacher: Any
    path: Path | None
    settings: ReplaySettings
    labels: Mapping[str, Any]
    teacher_prompts: TeacherPrompts | None = None
    template: str | None = None
    rollouts_from: str | None = None

    def fingerprint(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Everything that a stored trace must agree on, flat, so that the first difference can be named.

        Empty for a trace in memory, which is never used again.
        """
        if self.path is None:
            return {}
        settings = self.settings
        return {
            "student weights": weights_digest(self.student),
            **self.teacher_parts(),
            "student tokenizer": tokenizer_files_digest(settings.tokenizer or self.student),
            "teacher tokenizer": tokenizer_of_served(self.teacher)
            if isinstance(self.teacher, ServedModel)
            else tokenizer_files_digest(settings.tokenizer or self.teacher),
            "rollouts": rollouts_digest(rollouts),
            "teacher prompts": None if self.teacher_prompts is None else self.teacher_prompts.sha256,
            "temperature": settings.temperature,
            "dtype": settings.dtype,
            # A trace that does not say was made with torch's default, as far as anyone knows: that is None too.
            "matmul precision": reduced_matmul_precision(),
            "allow_special_mismatch": settings.allow_special_mismatch,
            "length_factors": self._length_rule(),
        }

    def teacher_parts(self) -> dict[str, Any]:
        """What tells the teacher's weights, of a served one as far as its server does."""
        if isinstance(self.teacher, ServedModel):
            return served_identity(self.teacher, self.path)
        return {"teacher weights": weights_digest(self.teacher)}

    def _length_rule(self) -> LengthRule | None:
        """Whose length decides; None where it decides nothing, so that the rule does not matter."""
        models = [one for one in (self.student, self.teacher) if not isinstance(one, ServedModel)]
        return self.settings.length_factors if any(map(has_length_factors, models)) else None

    def stored(self, fingerprint: Mapping[str, Any]) -> Trace | None:
        """The trace that is there already, when it fits, else None. Loads no model, and opens the file once.

        It has today's labels, in the file too, where ``--traces`` reads them. A trace that does not fit any more is
        warned about, with the reason.
        """
        if self.path is None or not self.path.is_file():
            return None
        found = _reusable(self.path, fingerprint, self.settings)
        if found is None:
            return None
        before = found.provenance.get("labels", {})
        if before != (labels := {**before, **self.labels}):
            found.provenance["labels"] = labels
            found = found.save(self.path)
        warn_of(found)
        return found

    def sides(self, rollouts: Sequence[Rollout]) -> list[list[StateSequence]]:
        """What the models read that are run, as of :func:`opd_probe.engine.sequences.replay_sides`.

        Args:
            rollouts: with ids.
        """
        other = None if isinstance(self.teacher, ServedModel) else self.teacher_prompts
        return replay_sides(rollouts, None if other is None else other.ids)

    def make(
        self,
        student: LoadedModel | StoredModel,
        teacher: LoadedModel | StoredModel | ServedModel,
        rollouts: Sequence[Rollout],
        fingerprint: Mapping[str, Any],
        progress: Progress | None,
    ) -> Trace:
        """Replay, and write the trace; an interrupted replay of the same path goes on where it stopped.

        Args:
            student, teacher: loaded, or as what is kept of them for these rollouts.
            rollouts: with ids.
            fingerprint: of the rollouts as they were given.

        Raises:
            OpdProbeError: bad input, in one line.
        """
        allow = self.settings.allow_special_mismatch
        vocabulary = shared_vocabulary(student, teacher, allow_special_mismatch=allow)
        settings = replace(self.settings, k=min(self.settings.k, vocabulary.size))
        job = _Job((student, teacher), vocabulary, rollouts, settings, self.teacher_prompts, self.template)
        return job.run(self.path, fingerprint, self.labels, progress, self.rollouts_from)


def shared_student(
    student: LoadedModel,
    rollouts: Sequence[Rollout],
    wanted: Sequence[TraceRequest],
    lacking: Sequence[int],
    place: Path | None,
    *,
    alone: bool,
    progress: Progress | None,
    sampled: SampledStates | None = None,
) -> LoadedModel | StoredModel:
    """What replays of one student need of it: itself, or its hidden states when several replays share them, or when
    sampling has read them.

    The states are kept on disk and not in memory: there the system holds on to them as long as nothing else needs the
    room, so that one way serves small and large jobs. They are computed in the batches of the first of all replays,
    whether or not its trace is there already, so that those of the others have the same bits either way.

    Args:
        wanted: all replays of the student over these rollouts.
        lacking: the numbers of those among them that are to be made.
        place: the directory whose disk takes the hidden states.
        alone: run the student now, in batches of its own, so that it can be let go before a teacher is loaded.
        sampled: what it read while it was sampled from.

    Raises:
        OutputError: the disk has no room for the hidden states. OutOfMemoryError: names what to lower.
    """
    settings, first = wanted[0].settings, wanted[0].sides(rollouts)
    own = sampled_model(student, rollouts, sampled, settings, place)
    if own is not None and not alone:
        return own
    if alone:
        kept = own or StoredModel(student, rollouts, place, settings.length_factors)
        with memory_advice("replaying"):
            kept.fill(settings.batch_tokens, progress)
        return kept
    if len(lacking) == 1 and sides_digest(wanted[lacking[0]].sides(rollouts)) == sides_digest(first):
        return student
    batches = [batch[0] for batch in sequence_batches(first, settings.batch_tokens)]
    return StoredModel(student, rollouts, place, settings.length_factors, batches=batches)


def _reusable(path: Path, fingerprint: Mapping[str, Any], settings: ReplaySettings) -> Trace | None:
    """The stored trace when it fits; otherwise None, with a warning that says why it is made anew."""
    try:
        stored = read_trace(path)
    except TraceError as error:
        warn_in_passing(f"{error} (made anew)")
        return None
    before = stored.provenance.get("fingerprint", {})
    differing = [name for name, value in fingerprint.items() if before.get(name) != value]
    reasons = [f"{', '.join(differing)} changed since it was made"] if differing else []
    if settings.jsd and not stored.provenance.get("jsd"):
        reasons.append("it has no Jensen-Shannon divergence")
    if min(settings.k, stored.vocabulary_size) > stored.K:
        reasons.append(f"it holds the top {stored.K}, asked for are {settings.k}")
    if not reasons:
        return stored
    warn_in_passing(f"trace {path}: {'; '.join(reasons)}; made anew")
    return None


@dataclass(frozen=True)
class _Job:
    """A replay whose inputs are all at hand."""

    models: tuple[LoadedModel | StoredModel, LoadedModel | StoredModel | ServedModel]
    vocabulary: SharedVocabulary
    rollouts: Sequence[Rollout]
    settings: ReplaySettings
    teacher_prompts: TeacherPrompts | None
    template: str | None = None

    def run(
        self,
        path: Path | None,
        fingerprint: Mapping[str, Any],
        labels: Mapping[str, Any],
        progress: Progress | None,
        rollouts_from: str | None,
    ) -> Trace:
        student, teacher = self.models
        prompts = None if self.teacher_prompts is None else self.teacher_prompts.ids
        given = self.rollouts, self.vocabulary.ids, self.settings, prompts
        engine: Replay | ServedReplay
        if isinstance(teacher, ServedModel):
            engine = ServedReplay(student, teacher, *given)
        else:
            engine = Replay(student, teacher, *given)
        counts = engine.state_counts
        columns = array_columns(jsd=self.settings.jsd, sampler=any(r.logprobs is not None for r in self.rollouts))
        key = _digest({**fingerprint, "K": self.settings.k, "columns": [c.name for c in columns]})
        directory = None if path is None else path.with_name(f".{path.name}.partial")
        served = isinstance(engine, ServedReplay)
        spool = TraceSpool(counts, columns, self.settings.k, directory, key, answers=TOLD if served else ())
        if isinstance(engine, ServedReplay):
            told = told_beside(path, fingerprint, self.settings.k, self.vocabulary.size)
            if path is not None:
                write_bytes(answers_path(path), json.dumps(fingerprint.get(ANSWERS)).encode())
            states = served_states(engine, spool, progress, told)
        else:
            states = engine.states(spool.done, progress)
        for index, values in states:
            spool.put(index, values)
        said = told_warnings(spool, engine) if isinstance(engine, ServedReplay) else []
        provenance = self._provenance(fingerprint, labels) | {
            "length_factors": self._length_factors(engine),
            "student_states": student.origin if isinstance(student, SampledModel) else {"from": "replay"},
            "warnings": [*said, *self._outside_warnings(spool)],
            "made_by": {"command": command_line(), "settings": self._asked(), "rollouts": rollouts_from},
        }
        trace = spool.finish(rollout_table(self._rows(counts)), provenance, path)
        warn_of(trace)
        return trace

    def _length_factors(self, engine: Replay | ServedReplay) -> dict[str, Any]:
        """Whose length decided, and for each model with several sets of rotary factors how many states it matters to:
        those of a prefix on one side of the boundary in a rollout whose end is on the other."""
        said: dict[str, Any] = {"rule": self.settings.length_factors, "student": None, "teacher": None}
        sides = engine.sides if isinstance(engine, Replay) else [engine.sequences]
        for name, model, sequences in zip(("student", "teacher"), self.models, (sides[0], sides[-1]), strict=True):
            factors = None if isinstance(model, ServedModel) else model.length_factors
            if factors is not None:
                states = sum(straddling(sequence, factors.boundary) for sequence in sequences)
                said[name] = {"kind": factors.kind, "boundary": factors.boundary, "straddling_states": states}
        return said

    def _outside_warnings(self, spool: TraceSpool) -> list[str]:
        found = []
        for side, model in zip(("student", "teacher"), self.models, strict=True):
            outside = spool.arrays[f"{side}_mass_outside"]
            mean = float(np.mean(outside)) if len(outside) else 0.0
            if mean > OUTSIDE_WARNING:
                found.append(
                    f"{mean:.1%} of the probability of the {side} {model.name} lies outside the shared vocabulary "
                    "(mean over states); it is left out of every metric"
                )
        return found

    def _rows(self, counts: Sequence[int]) -> list[dict[str, Any]]:
        rows = []
        read = self.teacher_prompts
        for index, (rollout, n_states) in enumerate(zip(self.rollouts, counts, strict=True)):
            rows.append(
                {
                    "rollout_id": rollout.id,
                    "prompt_id": prompt_key(rollout),
                    "step": rollout.step,
                    "prompt_length": len(rollout.prompt_ids),
                    "teacher_prompt_length": None if read is None else len(read.ids[index]),
                    "response_length": len(rollout.response_ids),
                    "n_states": n_states,
                    "finish_reason": rollout.finish_reason,
                    "answer": rollout.answer,
                    "score": self._score(rollout),
                    "token_source": rollout.token_source,
                    "sampling": sampling_words(rollout.sampling),
                    "skipped": skip_reason(rollout),
                }
            )
        return rows

    def _score(self, rollout: Rollout) -> float | None:
        if rollout.score is not None or rollout.answer is None:
            return rollout.score
        text = rollout.response
        tokenizer = self.models[0].tokenizer
        if text is None and tokenizer is not None:
            text = str(tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True))
        return None if text is None else float(grade_rollout(rollout, text))

    def _asked(self) -> dict[str, Any]:
        """The settings, in JSON types."""
        tokenizer = self.settings.tokenizer
        named = tokenizer if tokenizer is None or isinstance(tokenizer, (str, Path)) else type(tokenizer).__name__
        return {**asdict(replace(self.settings, tokenizer=None)), "tokenizer": None if named is None else str(named)}

    def _template_digest(self, tokenizer: Any) -> str | None:
        if self.template is not None:
            return text_digest(self.template)
        return None if tokenizer is None else template_digest(tokenizer)

    def _provenance(self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
        student, teacher = self.models
        return {
            "format_version": FORMAT_VERSION,
            "K": self.settings.k,
            "temperature": self.settings.temperature,
            "jsd": self.settings.jsd,
            "student": {**student.identity, "width": student.width},
            "teacher": {**teacher.identity, "width": teacher.width},
            "vocabulary": {
                "size": self.vocabulary.size,
                "assumed": self.vocabulary.assumed,
                "student_tokenizer_sha256": self.vocabulary.tokenizer_sha256[0],
                "teacher_tokenizer_sha256": self.vocabulary.tokenizer_sha256[1],
                "special_ids": None if student.tokenizer is None else sorted(special_ids(student.tokenizer)),
            },
            "template_sha256": self._template_digest(student.tokenizer),
            "teacher_prompt": None if self.teacher_prompts is None else dict(self.teacher_prompts.made),
            "labels": {"states": "unknown", **labels},
            "fingerprint": dict(fingerprint),
            "float32_precision": float32_precision(),
            "software": software(),
        }


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
