"""Loaded models: a teacher stays while its runs last, a student while its checkpoint is measured."""

from __future__ import annotations

import gc

from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.run.memory import memory_advice
from opd_probe.run.progress import Progress
from opd_probe.run.settings import Settings
from opd_probe.types import Checkpoint

_LARGE = 10_000_000
"""Parameters of a model whose memory is worth a garbage collection, which takes up to a second."""

_Key = tuple[str, str | None, str | None, str | None, str | None]


class ModelPool:
    """Loads on demand and keeps what is needed again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._student: tuple[_Key, LoadedModel] | None = None
        self._teachers: dict[_Key, LoadedModel] = {}

    def student(self, checkpoint: Checkpoint, settings: Settings, tokenizer: str | None) -> LoadedModel:
        """The student; the one before it is let go."""
        key = _key(checkpoint, settings, tokenizer)
        if self._student is None or self._student[0] != key:
            self._let_go([self._student[1]] if self._student else [])
            self._student = key, self._load(checkpoint, settings, tokenizer)
        return self._student[1]

    def teacher(self, checkpoint: Checkpoint, settings: Settings, tokenizer: str | None) -> LoadedModel:
        """A teacher; kept until :meth:`keep_teachers` leaves it out."""
        key = _key(checkpoint, settings, tokenizer)
        if key not in self._teachers:
            self._teachers[key] = self._load(checkpoint, settings, tokenizer)
        return self._teachers[key]

    def keep_teachers(self, wanted: list[Checkpoint]) -> None:
        """Let go of every teacher that is not among ``wanted``."""
        names = {(checkpoint.path, checkpoint.revision) for checkpoint in wanted}
        self._let_go([model for key, model in self._teachers.items() if key[:2] not in names])

    def _let_go(self, models: list[LoadedModel]) -> None:
        """Forget models, and have their memory back before the next is loaded: modules hold reference cycles."""
        large = any(model.identity["parameters"] > _LARGE for model in models)
        gone = {id(model) for model in models}
        if self._student is not None and id(self._student[1]) in gone:
            self._student = None
        self._teachers = {key: model for key, model in self._teachers.items() if id(model) not in gone}
        models.clear()
        if large:
            gc.collect()

    def _load(self, checkpoint: Checkpoint, settings: Settings, tokenizer: str | None) -> LoadedModel:
        self._progress.begin(f"load {checkpoint.path}")
        with memory_advice(f"loading {checkpoint.path}"):
            return load_model(checkpoint, dtype=settings.dtype, device=settings.device, tokenizer=tokenizer)


def _key(checkpoint: Checkpoint, settings: Settings, tokenizer: str | None) -> _Key:
    return checkpoint.path, checkpoint.revision, settings.dtype, settings.device, tokenizer
