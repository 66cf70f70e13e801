"""Hidden states of teachers, kept for as long as other checkpoints are to be replayed over the same rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from opd_probe.engine.replay import Progress
from opd_probe.engine.sequences import sequence_batches, sides_digest
from opd_probe.engine.stored import StoredModel
from opd_probe.jobs.files import Files
from opd_probe.jobs.plan import RunPlan, Teacher
from opd_probe.jobs.pool import model_key
from opd_probe.jobs.tracing import TraceRequest
from opd_probe.models.loading import LoadedModel
from opd_probe.models.served.model import ServedModel
from opd_probe.output import existing_directory
from opd_probe.types import Checkpoint, Rollout


def reading_of(run: RunPlan, checkpoint: Checkpoint, teacher: Teacher, files: Files) -> Hashable | None:
    """What a plan says of a replay that decides what its teacher makes of it: where it is equal, the teacher runs once.
    None: nothing is kept, since the responses are the checkpoint's own, or the teacher is served."""
    if run.source.kind != "rollouts" or isinstance(teacher.checkpoint, ServedModel):
        return None
    settings = run.settings
    step = (checkpoint.step or 0) + settings.step_offset if files.are_stepped(run.source) else None
    drawn = settings.max_states, None if settings.max_states is None else settings.seed
    how = settings.batch_tokens, settings.length_factors
    return model_key(run, teacher.checkpoint), teacher.prompt, run.source, step, drawn, how


class KeptTeachers:
    """What teachers made of fixed rollouts. A teacher runs once for all checkpoints that are replayed over them.

    That the rollouts are the same is found out twice. By what the plan says, before anything is done: so long as a
    later checkpoint names the same, states are kept. By their ids, at each checkpoint: only then are they used, since
    text becomes other ids with another tokenizer, and prompts with another template. The states come out of the batches
    of a single replay, so that the numbers are its numbers, to the last bit.

    Args:
        pairs: every checkpoint with its run, in the order in which they are replayed.
        place: where traces go, whose disk takes the states.
    """

    def __init__(self, pairs: Iterable[tuple[RunPlan, Checkpoint]], files: Files, place: Path) -> None:
        self._files, self._place = files, place
        self._to_come = Counter(name for run, checkpoint in pairs for name in self._names(run, checkpoint))
        self._held: dict[Hashable, tuple[str, StoredModel | None]] = {}

    def _names(self, run: RunPlan, checkpoint: Checkpoint) -> list[Hashable]:
        found = (reading_of(run, checkpoint, teacher, self._files) for teacher in run.teachers)
        return [name for name in found if name is not None]

    def teacher(
        self,
        run: RunPlan,
        checkpoint: Checkpoint,
        teacher: Teacher,
        request: TraceRequest,
        rollouts: Sequence[Rollout],
        load: Callable[[], LoadedModel],
    ) -> LoadedModel | StoredModel:
        """What a replay needs of a teacher: its states, where others need them too, else itself.

        Args:
            load: loads it; called when it has to run.
        """
        name = reading_of(run, checkpoint, teacher, self._files)
        again = name is not None and self._to_come[name] > 1
        if name not in self._held and not again:
            return load()
        sides = request.sides(rollouts)
        digest = sides_digest(sides)
        before, stored = self._held.get(name, (None, None))
        if before == digest:
            return load() if stored is None else stored
        if not again:
            return load()
        batches = [batch[-1] for batch in sequence_batches(sides, request.settings.batch_tokens)]
        rule, place = request.settings.length_factors, existing_directory(self._place)
        stored = StoredModel(load(), rollouts, place, rule, batches=batches, optional=True)
        self._held[name] = digest, stored
        return stored

    def settle(self, teacher: object, progress: Progress) -> None:
        """After a replay, let go of a teacher whose states are kept, or cannot be.

        A replay that went on from unfinished work has asked for some states only; the others are computed now, while
        the teacher is there.
        """
        for name, (digest, stored) in self._held.items():
            if stored is teacher and stored is not None:
                if stored.refused:
                    self._held[name] = digest, None
                elif not stored.whole:
                    stored.fill(1, progress)

    def passed(self, run: RunPlan, checkpoint: Checkpoint) -> None:
        """Forget what no checkpoint after this one asks for."""
        names = self._names(run, checkpoint)
        self._to_come.subtract(names)
        for name in names:
            if self._to_come[name] <= 0:
                self._held.pop(name, None)
