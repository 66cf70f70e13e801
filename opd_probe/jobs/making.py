"""Making one trace: its models are at hand, and what of it is there already is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.engine.provenance import command_line, float32_precision
from opd_probe.engine.replay import Progress, Replay
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.sequences import skip_reason, straddling
from opd_probe.engine.served import TOLD, ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.jobs.served import ANSWERS, Rows, answers_path, served_states, told_beside, told_warnings
from opd_probe.jobs.stopping import Begun
from opd_probe.models.loading import LoadedModel
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import SharedVocabulary, special_ids, template_digest, text_digest
from opd_probe.output import write_bytes
from opd_probe.rollouts.fields import carried_fields
from opd_probe.rollouts.files import prompt_key
from opd_probe.rollouts.grading import grade_rollout
from opd_probe.rollouts.sampling import sampling_words
from opd_probe.rollouts.teacher_prompts import TeacherPrompts
from opd_probe.runs.stored import warn_of
from opd_probe.trace import Trace, TraceSpool, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION, array_columns
from opd_probe.types import Rollout
from opd_probe.versions import software

OUTSIDE_WARNING = 0.01
"""Mean probability outside the shared vocabulary above which a replay warns."""


@dataclass(frozen=True)
class Job:
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
        begun: Begun,
    ) -> Trace:
        """Replay what is not there yet, to the end or until it is as precise as asked, and write the trace.

        Args:
            begun: what there is to go on from, the order of the work, and the precision.
        """
        student, teacher = self.models
        prompts = None if self.teacher_prompts is None else self.teacher_prompts.ids
        given = self.rollouts, self.vocabulary.ids, self.settings, prompts
        engine: Replay | ServedReplay
        if isinstance(teacher, ServedModel):
            engine = ServedReplay(student, teacher, *given)
        else:
            engine = Replay(student, teacher, *given)
        counts = engine.state_counts
        ways = engine.ways if isinstance(engine, Replay) else None
        columns = array_columns(jsd=self.settings.jsd, sampler=any(r.logprobs is not None for r in self.rollouts))
        # Unfinished work goes on as it began, or begins anew; what was begun plainly says nothing of it.
        special = {"ways": ways} if ways is not None and any(ways.values()) else {}
        key = _digest({**fingerprint, "K": self.settings.k, "columns": [c.name for c in columns], **special})
        directory = None if path is None else path.with_name(f".{path.name}.partial")
        served = isinstance(engine, ServedReplay)
        spool = TraceSpool(counts, columns, self.settings.k, directory, key, answers=TOLD if served else ())
        begun.keep(path, fingerprint)
        begun.fill(spool, [rollout.id for rollout in self.rollouts])
        units = begun.units(self.rollouts)
        if isinstance(engine, ServedReplay):
            told = told_beside(path, fingerprint, self.settings.k, self.vocabulary.size)
            if path is not None:
                write_bytes(answers_path(path), json.dumps(fingerprint.get(ANSWERS)).encode())
            states = served_states(engine, spool, progress, told, units)
        else:
            states = engine.states(spool.done, progress, units)
        table = rollout_table(self._rows(counts))
        provenance = self._provenance(fingerprint, labels)
        taken = begun.replayed(states, spool, units, table, provenance)
        rows = slice(None) if taken is None else spool.rows(taken)
        said = told_warnings(spool, engine, rows) if isinstance(engine, ServedReplay) else []
        provenance |= begun.said(taken, table, spool) | {
            "length_factors": self._length_factors(engine, taken),
            "student_states": student.origin if isinstance(student, SampledModel) else {"from": "replay"},
            "ways": ways,
            "warnings": [*said, *self._outside_warnings(spool, rows)],
            "made_by": {"command": command_line(), "settings": self._asked(), "rollouts": rollouts_from},
        }
        trace = spool.finish(table, provenance, path, taken)
        warn_of(trace)
        return trace

    def _length_factors(self, engine: Replay | ServedReplay, taken: Sequence[int] | None) -> dict[str, Any]:
        """Whose length decided, and for each model with several sets of rotary factors how many states it matters to:
        those of a prefix on one side of the boundary in a rollout whose end is on the other."""
        said: dict[str, Any] = {"rule": self.settings.length_factors, "student": None, "teacher": None}
        held = None if taken is None else frozenset(taken)
        sides = engine.sides if isinstance(engine, Replay) else [engine.sequences]
        for name, model, sequences in zip(("student", "teacher"), self.models, (sides[0], sides[-1]), strict=True):
            factors = None if isinstance(model, ServedModel) else model.length_factors
            if factors is not None:
                read = (sequence for sequence in sequences if held is None or sequence.rollout in held)
                states = sum(straddling(sequence, factors.boundary) for sequence in read)
                said[name] = {"kind": factors.kind, "boundary": factors.boundary, "straddling_states": states}
        return said

    def _outside_warnings(self, spool: TraceSpool, rows: Rows) -> list[str]:
        found = []
        for side, model in zip(("student", "teacher"), self.models, strict=True):
            outside = spool.arrays[f"{side}_mass_outside"][rows]
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
                    "fields": carried_fields(rollout.extra),
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
