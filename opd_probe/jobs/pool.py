"""Loaded models: a teacher stays while its runs last, a student while its checkpoint is measured."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable
from pathlib import Path

from opd_probe.jobs.memory import is_large, memory_advice
from opd_probe.jobs.plan import RunPlan
from opd_probe.models.bases import Bases
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.outline import Outline, read_outline
from opd_probe.models.served.model import ServedModel
from opd_probe.progress import Progress
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint

ModelKey = tuple[str | None, ...]
"""What tells a model that is loaded from others."""


class ModelPool:
    """Loads on demand and keeps what is needed again; for a sequential run, one model at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._loaded: dict[ModelKey, LoadedModel] = {}
        self._outlines: dict[ModelKey, Outline] = {}
        self._bases = Bases()

    def expect(self, pairs: Iterable[tuple[RunPlan, Checkpoint]]) -> None:
        """Say which students are to come, so that the base of several adapters is read once; in a sequential run, which
        has room for one model, it is read for each."""
        self._bases.expect(base_of(run, checkpoint) for run, checkpoint in pairs)

    def passed(self, run: RunPlan, checkpoint: Checkpoint) -> None:
        """Say that a student which was expected has been measured."""
        self._bases.passed(base_of(run, checkpoint))

    def student(self, run: RunPlan, checkpoint: Checkpoint) -> LoadedModel:
        """The student; beside it only the run's teachers stay, and in a sequential run none."""
        beside = [] if run.settings.sequential else [teacher.checkpoint for teacher in run.teachers]
        kept = {model_key(run, teacher) for teacher in beside if isinstance(teacher, Checkpoint)}
        return self._load(run, checkpoint, kept)

    def teacher(self, run: RunPlan, checkpoint: Checkpoint | ServedModel) -> LoadedModel | ServedModel:
        """A teacher; beside it everything stays, and in a sequential run nothing. A served one needs no loading."""
        return checkpoint if isinstance(checkpoint, ServedModel) else self.weights(run, checkpoint)

    def weights(self, run: RunPlan, checkpoint: Checkpoint) -> LoadedModel:
        """Those of a served teacher, to be compared with what the server says; beside them as beside a teacher."""
        return self._load(run, checkpoint, () if run.settings.sequential else self._loaded.keys())

    def teachers(self, run: RunPlan) -> list[LoadedModel | Outline | ServedModel]:
        """All teachers of a run, to see whether they fit the student: loaded, or in outline in a sequential run."""
        checkpoints = [teacher.checkpoint for teacher in run.teachers]
        look = self.teacher_outline if run.settings.sequential else self.teacher
        return [look(run, checkpoint) for checkpoint in checkpoints]

    def sampled_student(self, run: RunPlan, checkpoint: Checkpoint) -> LoadedModel | Outline:
        """The student to sample from: loaded, or in outline for vLLM and servers, which load it by themselves."""
        own = run.settings.sampler == "transformers"
        return self.student(run, checkpoint) if own else self.outline(run, checkpoint)

    def sampled_teachers(self, run: RunPlan) -> list[LoadedModel | Outline | ServedModel]:
        """All teachers, to see which ids may be sampled: as for a replay, but in outline beside vLLM or a server."""
        if run.settings.sampler != "transformers":
            return [self.teacher_outline(run, teacher.checkpoint) for teacher in run.teachers]
        return self.teachers(run)

    def teacher_outline(self, run: RunPlan, checkpoint: Checkpoint | ServedModel) -> Outline | ServedModel:
        """What a teacher's files, or its server, say of it."""
        return checkpoint if isinstance(checkpoint, ServedModel) else self.outline(run, checkpoint)

    def outline(self, run: RunPlan, checkpoint: Checkpoint) -> Outline:
        """What a model's files say of it."""
        key = model_key(run, checkpoint)
        if key not in self._outlines:
            self._outlines[key] = read_outline(checkpoint, tokenizer=run.tokenizer)
        return self._outlines[key]

    def clear(self) -> None:
        """Let go of every model."""
        self._keep(())

    def _load(self, run: RunPlan, checkpoint: Checkpoint, beside: Collection[ModelKey]) -> LoadedModel:
        key = model_key(run, checkpoint)
        self._keep({key, *beside})
        if key not in self._loaded:
            settings = run.settings
            self._progress.begin(f"load {checkpoint.path}")
            with memory_advice(f"loading {checkpoint.path}"):
                self._loaded[key] = load_model(
                    checkpoint,
                    dtype=settings.dtype,
                    device=settings.device,
                    device_map=settings.device_map,
                    tokenizer=run.tokenizer,
                    bases=self._bases,
                )
        return self._loaded[key]

    def _keep(self, keys: Collection[ModelKey]) -> None:
        """Forget the others, and have their memory back before the next is loaded: modules hold reference cycles."""
        gone = [key for key in self._loaded if key not in keys]
        large = any(is_large(self._loaded[key]) for key in gone)
        for key in gone:
            del self._loaded[key]
        if large:
            gc.collect()


def base_of(run: RunPlan, checkpoint: Checkpoint) -> str | None:
    """The base that is worth keeping of a student."""
    return None if run.settings.sequential else checkpoint.base


def model_key(run: RunPlan, checkpoint: Checkpoint) -> ModelKey:
    """What decides what loading a checkpoint gives: which it is, and how a run loads it."""
    settings = run.settings
    place = settings.dtype, settings.device, settings.device_map, run.tokenizer
    path = Path(checkpoint.path)
    # One model under two spellings of its path, as in self-distillation, is loaded once.
    return str(real_path(path)) if path.exists() else checkpoint.path, checkpoint.revision, checkpoint.base, *place
