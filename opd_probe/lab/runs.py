"""The pieces of work that the tables are made of: models, runs with their measurements, and two measurements more.

Each is a :class:`Job`, done once and kept in the cache; a job names the jobs that must be done before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from opd_probe.lab.cache import Labelled, cached_directory, cached_json, model_of, place_of, trained_model, write_json
from opd_probe.lab.coldstart import ColdStartRecipe
from opd_probe.lab.content import content
from opd_probe.lab.distill import StepLog, distill
from opd_probe.lab.evaluate import continuations, evaluation_rollouts, held_out, measure_checkpoint
from opd_probe.lab.models import LabModel, save_model
from opd_probe.lab.progress import begin_worker, lines
from opd_probe.lab.recipes import MODELS, RUNS, RunRecipe, digest
from opd_probe.lab.task import STEP_LENGTH, STEPS, PromptRecipe

__all__ = ["CONTINUED", "EVALUATED", "Job", "do", "done", "needs", "read_continuation", "read_evaluation", "read_run"]

Kind = Literal["model", "run", "evaluation", "continuation"]

EVALUATED: Final = {name: "answer" if name == "template-teacher" else "total" for name in MODELS}
"""The prompt template that each model's own accuracy is measured in."""

CONTINUED: Final = tuple(STEP_LENGTH * step for step in range(STEPS + 1))
"""Depths, in tokens, at which a teacher takes over."""

_ROLLOUTS: Final = 512
_SAMPLES: Final = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One artefact of the cache: ``name`` is that of a model or a run; ``continuation`` jobs are named by a run."""

    kind: Kind
    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, seed {self.seed}"


def needs(job: Job) -> Iterator[Job]:
    """What must be in the cache before ``job`` is done."""
    names: list[str] = []
    if job.kind == "model":
        recipe = MODELS[job.name]
        names = [recipe.start] if recipe.start is not None else []
        if isinstance(recipe.training, ColdStartRecipe):
            names.append(recipe.training.teacher)
    elif job.kind == "evaluation":
        names = [job.name]
    else:
        run = RUNS[job.name]
        names = [run.student, run.teacher, *(run.measure.pair or ())]
    for name in names:
        yield Job("run" if name in RUNS else "model", name, job.seed)


def _tag(kind: Kind) -> str:
    return "" if kind in ("model", "run") else kind


def done(root: Path, job: Job) -> bool:
    """Whether the cache holds the job's artefact."""
    return place_of(root, job.name, job.seed, _tag(job.kind)).is_dir()


def do(root: Path, job: Job) -> None:
    """Do one job in this process, on one thread; what it needs and the cache lacks is done first."""
    begin_worker()
    if job.kind == "model":
        trained_model(root, job.name, job.seed, lines)
    elif job.kind == "run":
        run_directory(root, job.name, job.seed, lines)
    elif job.kind == "evaluation":
        read_evaluation(root, job.name, job.seed)
    else:
        read_continuation(root, job.name, job.seed)


def run_directory(root: Path, name: str, seed: int, progress: Labelled) -> Path:
    """The directory of a finished run: ``log.json``, ``step-<N>.json`` for each measured step, and ``model``.

    An interrupted run goes on from its last checkpoint.
    """
    run = RUNS[name]

    def fill(directory: Path) -> None:
        student, teacher = (model_of(root, model, seed, progress) for model in (run.student, run.teacher))
        measured = _Measured(root, run, seed, teacher, directory)
        measured.start(student)
        report, state = progress(f"seed {seed} {name}"), directory / "state.pt"
        student, log = distill(student, teacher, run.distillation, seed, measured.checkpoint, report, state)
        write_json(directory / "log.json", {"steps": [dict(row) for row in log]})
        save_model(student, directory / "model")
        state.unlink()

    return cached_directory(root, name, seed, fill, resumable=True)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measures the checkpoints of one run as they are made."""

    root: Path
    run: RunRecipe
    seed: int
    teacher: LabModel
    directory: Path

    def start(self, student: LabModel) -> None:
        """The student before the run, which runs that differ in their loss alone have in common."""
        place = self.directory / "step-0.json"
        if place.is_file():
            return
        run = self.run
        same = digest_of_start(run, self.seed)
        shared = self.root / f"start-seed{self.seed}-{same}.json"
        if not shared.is_file():
            write_json(shared, self._measure(student, run.measure.ends))
        place.write_bytes(shared.read_bytes())

    def checkpoint(self, step: int, student: LabModel, _log: list[StepLog]) -> None:
        last = step == self.run.distillation.steps
        count = self.run.measure.ends if last else self.run.measure.between
        write_json(self.directory / f"step-{step}.json", self._measure(student, count))

    def _measure(self, student: LabModel, count: int) -> dict[str, Any]:
        run = self.run
        pair = None
        if run.measure.pair is not None:
            first, second = (model_of(self.root, name, self.seed, lines) for name in run.measure.pair)
            pair = (first, second)
        prompts = run.distillation.prompts
        return measure_checkpoint(student, self.teacher, run.measure, self.seed, count, prompts, pair)


def digest_of_start(run: RunRecipe, seed: int) -> str:
    """Changes with whatever the measurement before the first step depends on."""
    parts = [
        digest(run.student, seed),
        digest(run.teacher, seed),
        content(run.measure),
        content(run.distillation.prompts),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def read_run(root: Path, name: str, seed: int) -> tuple[list[dict[str, float]], dict[int, dict[str, Any]]]:
    """A finished run's training log, and what was measured at each step: step → :func:`measure_checkpoint`."""
    place = place_of(root, name, seed)
    log: list[dict[str, float]] = json.loads((place / "log.json").read_text())["steps"]
    steps = sorted(int(path.stem.removeprefix("step-")) for path in place.glob("step-*.json"))
    return log, {step: json.loads((place / f"step-{step}.json").read_text()) for step in steps}


def read_evaluation(root: Path, name: str, seed: int) -> dict[str, float]:
    """A model's own accuracy: problem → share of its rollouts that are correct; measured unless it is cached."""

    def make() -> dict[str, float]:
        model = model_of(root, name, seed, lines)
        prompts = PromptRecipe(EVALUATED[name])
        return held_out(evaluation_rollouts(model, _ROLLOUTS, seed, prompts, _SAMPLES))

    return cached_json(root, name, seed, make, tag="evaluation")


def read_continuation(root: Path, name: str, seed: int) -> dict[str, Any]:
    """What the teacher of run ``name`` makes of the beginnings of its student's responses, before the run."""

    def make() -> dict[str, Any]:
        run = RUNS[name]
        student, teacher = (model_of(root, model, seed, lines) for model in (run.student, run.teacher))
        return continuations(student, teacher, CONTINUED, _ROLLOUTS, seed)

    return cached_json(root, name, seed, make, tag="continuation")
