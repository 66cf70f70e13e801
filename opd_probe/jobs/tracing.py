"""One trace: what decides it, whether a stored one still fits, and making it from loaded models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from opd_probe.engine.provenance import reduced_matmul_precision
from opd_probe.engine.replay import Progress
from opd_probe.engine.sequences import StateSequence, pending_batches, replay_sides, sides_digest
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import TraceError, warn_in_passing
from opd_probe.jobs.making import Job
from opd_probe.jobs.memory import memory_advice
from opd_probe.jobs.own_states import sampled_model
from opd_probe.jobs.served import served_identity, tokenizer_of_served
from opd_probe.jobs.stopping import Begun, Order, check_told, kept_order, narrow, warn_of_width
from opd_probe.models.digests import check_unchanged, tokenizer_files_digest, weights_digest
from opd_probe.models.lengths import has_length_factors
from opd_probe.models.loading import LoadedModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import shared_vocabulary
from opd_probe.options.precision import Precision
from opd_probe.rollouts.fields import carried_fields
from opd_probe.rollouts.files import rollouts_digest
from opd_probe.rollouts.teacher_prompts import TeacherPrompts
from opd_probe.runs.stored import warn_of
from opd_probe.texts import real_path
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Checkpoint, LengthRule, Rollout


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
        precision: when the replay may stop; None: once it is through.
        reuse: whether a stored trace that fits is used, and gone on from where its replay stopped.
    """

    student: Any
    teacher: Any
    path: Path | None
    settings: ReplaySettings
    labels: Mapping[str, Any]
    teacher_prompts: TeacherPrompts | None = None
    template: str | None = None
    rollouts_from: str | None = None
    precision: Precision | None = None
    reuse: bool = True

    @property
    def is_of_one_model(self) -> bool:
        """Whether student and teacher are the same weights on this machine's disk."""
        places = [one.path if isinstance(one, Checkpoint) else one for one in (self.student, self.teacher)]
        named = [real_path(place) for place in places if isinstance(place, (str, Path)) and Path(place).exists()]
        return len(named) == 2 and named[0] == named[1]

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

    def stored(self, fingerprint: Mapping[str, Any], rollouts: Sequence[Rollout]) -> Trace | None:
        """The trace that is there already, when it fits and is as precise as asked, else None. Loads no model, and
        opens the file once.

        It has today's labels, and what the rollouts carry today, in the file too, where ``--traces`` reads them. A
        trace that does not fit any more is warned about, with the reason; from one whose replay stopped too early
        :meth:`make` goes on.

        Args:
            rollouts: those of ``fingerprint``.
        """
        if self.precision is not None and isinstance(self.teacher, ServedModel):
            check_told(self.precision)
        if self.path is None or not self.reuse or not self.path.is_file():
            return None
        found = _reusable(self.path, fingerprint, self.settings)
        if found is None or not self._enough(found):
            return None
        before = found.provenance.get("labels", {})
        table = _with_fields(found.rollouts, rollouts)
        if before != (labels := {**before, **self.labels}) or table is not found.rollouts:
            found.provenance["labels"], found.rollouts = labels, table
            found = found.save(self.path)
        warn_of(found)
        return found

    def _enough(self, found: Trace) -> bool:
        """Whether a trace that fits holds what is asked for."""
        if found.stopped is not None:
            return self.precision is not None and narrow(found, self.precision)
        if self.precision is not None:
            warn_of_width(found, self.precision)
        return True

    def begun(self, rollouts: Sequence[Rollout], fingerprint: Mapping[str, Any]) -> Begun:
        """What :meth:`make` goes on from, and how it works.

        The order is that of what is there already, whatever is asked for now, or else that of a replay that may stop.
        """
        path = self.path if self.reuse else None
        if path is not None and path.is_file():
            with suppress(TraceError):
                found = read_trace(path, verify=False)
                order = Order.stored(found.provenance.get("order"), rollouts)
                if found.stopped is not None and order is not None and not _misfits(found, fingerprint, self.settings):
                    return Begun(order, found, self.precision)
        order = None if path is None else kept_order(path, fingerprint, rollouts)
        if order is None and self.precision is not None:
            order = Order.of(rollouts, self.precision.seed)
        return Begun(order, None, self.precision)

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
        for side, source in (("student", self.student), ("teacher", self.teacher)):
            check_unchanged(source, fingerprint.get(f"{side} weights"))
        allow = self.settings.allow_special_mismatch
        vocabulary = shared_vocabulary(student, teacher, allow_special_mismatch=allow)
        settings = replace(self.settings, k=min(self.settings.k, vocabulary.size))
        begun = self.begun(rollouts, fingerprint)
        if begun.trace is not None:
            settings = replace(settings, k=begun.trace.K, jsd="jsd" in begun.trace.columns)
        job = Job((student, teacher), vocabulary, rollouts, settings, self.teacher_prompts, self.template)
        trace = job.run(self.path, fingerprint, self.labels, progress, self.rollouts_from, begun)
        if self.precision is not None and trace.stopped is None:
            warn_of_width(trace, self.precision)
        return trace


def _with_fields(table: pa.Table, rollouts: Sequence[Rollout]) -> pa.Table:
    """The rollout table with what the rollouts carry; the same table where it has all of that."""
    carried = {rollout.id: carried_fields(rollout.extra) for rollout in rollouts}
    wanted = [carried.get(name) for name in table.column("rollout_id").to_pylist()]
    held = table.column("fields").to_pylist() if "fields" in table.column_names else [None] * len(wanted)
    if all(_within(*pair) for pair in zip(wanted, held, strict=True)):
        return table
    without = table.drop_columns(["fields"]) if "fields" in table.column_names else table
    return without.append_column("fields", pa.array(wanted, type=pa.string()))


def _within(fields: str | None, others: str | None) -> bool:
    """Whether fields are among others, which have more where text was made into ids."""
    if fields is None or fields == others:
        return True
    try:
        return others is not None and json.loads(fields).items() <= json.loads(others).items()
    except (ValueError, AttributeError, RecursionError):  # not what was written
        return False


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
    order: Order | None = None,
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
        order: of the replays.

    Raises:
        OutputError: the disk has no room for the hidden states. OutOfMemoryError: names what to lower.
    """
    settings, first = wanted[0].settings, wanted[0].sides(rollouts)
    units = None if order is None else order.units(rollouts)
    if settings.student_states is None and any(one.is_of_one_model for one in wanted):
        sampled = None  # its own divergence from itself is 0 to the last bit where both sides come out of one replay
    own = sampled_model(student, rollouts, sampled, settings, place)
    if own is not None and not alone:
        return own
    if alone:
        kept = own or StoredModel(student, rollouts, place, settings.length_factors)
        with memory_advice("replaying"):
            kept.fill(settings.batch_tokens, progress, units)
        return kept
    if len(lacking) == 1 and sides_digest(wanted[lacking[0]].sides(rollouts)) == sides_digest(first):
        return student
    batches = [batch[0] for batch in pending_batches(first, settings.batch_tokens, units=units)]
    return StoredModel(student, rollouts, place, settings.length_factors, batches=batches)


def _reusable(path: Path, fingerprint: Mapping[str, Any], settings: ReplaySettings) -> Trace | None:
    """The stored trace when it fits; otherwise None, with a warning that says why it is made anew."""
    try:
        stored = read_trace(path)
    except TraceError as error:
        warn_in_passing(f"{error} (made anew)")
        return None
    reasons = _misfits(stored, fingerprint, settings)
    if not reasons:
        return stored
    warn_in_passing(f"trace {path}: {'; '.join(reasons)}; made anew")
    return None


def _misfits(stored: Trace, fingerprint: Mapping[str, Any], settings: ReplaySettings) -> list[str]:
    """Why a stored trace is not the one that is asked for, nor a part of it."""
    before = stored.provenance.get("fingerprint", {})
    differing = [name for name, value in fingerprint.items() if before.get(name) != value]
    reasons = [f"{', '.join(differing)} changed since it was made"] if differing else []
    if settings.jsd and not stored.provenance.get("jsd"):
        reasons.append("it has no Jensen-Shannon divergence")
    if min(settings.k, stored.vocabulary_size) > stored.K:
        reasons.append(f"it holds the top {stored.K}, asked for are {settings.k}")
    return reasons
