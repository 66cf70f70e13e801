"""The main job: for every run, checkpoint and teacher, its rollouts and a trace. What fits is used again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.errors import OpdProbeError, OutOfMemoryError
from opd_probe.run.files import Files
from opd_probe.run.memory import memory_advice
from opd_probe.run.plan import Plan, RunPlan, Teacher
from opd_probe.run.pool import ModelPool
from opd_probe.run.progress import Progress
from opd_probe.run.replay import replay, stored_trace
from opd_probe.run.sampling import Sampler, check_pair, step_name
from opd_probe.run.stored import Measured
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Checkpoint, Rollout, StateOrigin


def measure(plan: Plan, progress: Progress) -> list[Measured]:
    """Traces of every (run, checkpoint, teacher) of a plan.

    Inputs are checked before a model is loaded, and models before anything is written.

    Raises:
        OpdProbeError: bad input, in one line. Finished traces are kept.
    """
    files = Files(plan.runs)
    files.check()
    pool = ModelPool(progress)
    sampler = Sampler(plan.out / "rollouts", pool, files, progress)
    measured: list[Measured] = []
    # Runs with the same teachers follow one another, so that these stay loaded.
    for run in sorted(plan.runs, key=lambda one: [teacher.name for teacher in one.teachers]):
        pool.keep_teachers([teacher.checkpoint for teacher in run.teachers])
        for checkpoint in run.run.checkpoints:
            rollouts, states = _rollouts(run, checkpoint, files, sampler)
            station = _Station(plan.out / "traces", run, checkpoint, rollouts, states, pool, progress)
            measured += [station.measured(teacher) for teacher in run.teachers]
    return measured


def _rollouts(
    run: RunPlan, checkpoint: Checkpoint, files: Files, sampler: Sampler
) -> tuple[list[Rollout], StateOrigin]:
    if run.source.kind == "prompts":
        return sampler.sampled(run, checkpoint), "own"
    return files.replayed(run, checkpoint)


@dataclass(frozen=True, slots=True)
class _Station:
    """One checkpoint with its rollouts, to be replayed against each teacher."""

    directory: Path
    run: RunPlan
    checkpoint: Checkpoint
    rollouts: Sequence[Rollout]
    states: StateOrigin
    pool: ModelPool
    progress: Progress

    def measured(self, teacher: Teacher) -> Measured:
        trace = self._trace(teacher)
        name, step = self.run.run.name, self.checkpoint.step
        return Measured(name, step, teacher.name, self.states, trace, self.run.settings)

    def _trace(self, teacher: Teacher) -> Trace:
        settings = self.run.settings
        folder = self.directory / self.run.folder / self.run.teacher_folders[teacher.name]
        path = folder / f"{step_name(self.checkpoint)}.parquet"
        labels = {
            "run": self.run.run.name,
            "step": self.checkpoint.step,
            "teacher": teacher.name,
            "states": self.states,
        }
        options: dict[str, Any] = {
            "k": settings.trace_k,
            "jsd": settings.jsd,
            "temperature": settings.temperature,
            "dtype": settings.dtype,
            "tokenizer": self.run.tokenizer,
            "allow_special_mismatch": settings.allow_special_mismatch,
            "labels": labels,
        }
        stored = stored_trace(self.checkpoint, teacher.checkpoint, self.rollouts, path, **options)
        if stored is not None:
            return _with_labels(stored, path, labels)
        student = self.pool.student(self.checkpoint, settings, self.run.tokenizer)
        other = self.pool.teacher(teacher.checkpoint, settings, self.run.tokenizer)
        check_pair(student, other, settings)
        self.progress.begin(f"replay {self.run.run.name} {path.stem} against {teacher.name}")
        with memory_advice("replaying"), _nothing_half_written(path):
            return replay(
                student,
                other,
                self.rollouts,
                out=path,
                batch_tokens=settings.batch_tokens,
                reuse=False,
                progress=self.progress.update,
                **options,
            )


def _with_labels(trace: Trace, path: Path, labels: Mapping[str, Any]) -> Trace:
    """The stored trace under today's labels, in the file too: ``--traces`` reads them from there."""
    before = read_trace(path).provenance.get("labels", {})
    return trace if all(before.get(name) == value for name, value in labels.items()) else trace.save(path)


@contextmanager
def _nothing_half_written(path: Path) -> Iterator[None]:
    """After bad input, remove a replay's unfinished work and the folders made for it.

    What an interrupt or a lack of memory leaves behind is kept when it holds finished rollouts: the next
    replay goes on from there.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    except OpdProbeError as error:
        partial = path.with_name(f".{path.name}.partial")
        if not (isinstance(error, OutOfMemoryError) and _has_progress(partial)):
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _has_progress(partial: Path) -> bool:
    try:
        return bool(np.load(partial / "done.npy", mmap_mode="r").any())
    except (OSError, ValueError):
        return False
