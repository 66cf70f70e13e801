"""The main job: for every run, checkpoint and teacher, its rollouts and a trace. What fits is used again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.engine.stored import StoredModel
from opd_probe.errors import OpdProbeError, OutOfMemoryError, OutputError, ServerError
from opd_probe.jobs.ahead import ReadAhead
from opd_probe.jobs.files import Files, matched
from opd_probe.jobs.kept import KeptTeachers
from opd_probe.jobs.memory import memory_advice, too_large_together
from opd_probe.jobs.plan import Plan, RunPlan, Teacher
from opd_probe.jobs.pool import ModelPool
from opd_probe.jobs.prompting import Prompter
from opd_probe.jobs.rendering import template_source
from opd_probe.jobs.sampling import Sampler, check_pair, each_once, step_name
from opd_probe.jobs.served import settings_for
from opd_probe.jobs.size import states_asked
from opd_probe.jobs.stopping import Order
from opd_probe.jobs.tracing import TraceRequest, shared_student
from opd_probe.models.loading import LoadedModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.served.model import ServedModel
from opd_probe.output import existing_directory
from opd_probe.plain import visible
from opd_probe.progress import Progress
from opd_probe.runs.stored import Measured
from opd_probe.trace import Trace
from opd_probe.types import Checkpoint, Rollout, StateOrigin


def measure(plan: Plan, progress: Progress) -> list[Measured]:
    """Traces of every (run, checkpoint, teacher) of a plan.

    Inputs are checked before a model is loaded, and models before anything is written.

    Raises:
        OpdProbeError: bad input, in one line. Finished traces are kept.
    """
    files = matched(plan.runs)
    files.check()
    # Decided while nothing is loaded yet, which would not be free to be used.
    runs = [
        replace(run, settings=run.settings.model_copy(update={"sequential": sequential(run)})) for run in files.plans
    ]
    asked = states_asked(runs, files)
    pool, prompter = ModelPool(progress), Prompter()
    prompter.check(runs, files)
    sampler = Sampler(plan.out / "rollouts", pool, files, prompter, progress)
    _sample_with_vllm(runs, sampler)
    measured: list[Measured] = []
    # Runs with the same teachers follow one another, so that these stay loaded.
    runs.sort(key=lambda one: [teacher.name for teacher in one.teachers])
    pairs = [(run, checkpoint) for run in runs for checkpoint in run.run.checkpoints]
    traces = plan.out / "traces"
    kept = KeptTeachers(pairs, files, traces)
    pool.expect(pairs)
    ahead = ReadAhead([(checkpoint, not _all_there(traces, run, checkpoint)) for run, checkpoint in pairs])
    for number, (run, checkpoint) in enumerate(pairs):
        with ahead.during(number):
            rollouts, states, own = _rollouts(run, checkpoint, files, sampler)
            station = _Station(traces, run, checkpoint, rollouts, states, own, pool, kept, prompter, progress, asked)
            measured += station.measured()
        kept.passed(run, checkpoint)
        pool.passed(run, checkpoint)
    return measured


def _sample_with_vllm(runs: Sequence[RunPlan], sampler: Sampler) -> None:
    """All that vLLM is to sample, while no model of ours is loaded: its engine takes most of a device."""
    for run in runs:
        if run.source.kind == "prompts" and run.settings.sampler == "vllm":
            for checkpoint in run.run.checkpoints:
                sampler.sampled(run, checkpoint)


def sequential(run: RunPlan) -> bool:
    """Whether a run has one model in memory at a time: as asked, else when they do not fit together."""
    settings = run.settings
    if settings.sequential is not None:
        return settings.sequential
    teachers = [one.checkpoint for one in run.teachers if not isinstance(one.checkpoint, ServedModel)]
    return any(
        too_large_together([checkpoint, *teachers], settings.dtype, settings.device, settings.device_map)
        for checkpoint in run.run.checkpoints
    )


def _rollouts(
    run: RunPlan, checkpoint: Checkpoint, files: Files, sampler: Sampler
) -> tuple[list[Rollout], StateOrigin, SampledStates | None]:
    if run.source.kind == "prompts":
        rollouts, own = sampler.sampled(run, checkpoint)
        return rollouts, "own", own
    return *files.replayed(run, checkpoint), None


def _path(traces: Path, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher) -> Path:
    """Where a trace lies."""
    return traces / run.folder / run.teacher_folders[teacher.name] / f"{step_name(checkpoint)}.parquet"


def _all_there(traces: Path, run: RunPlan, checkpoint: Checkpoint) -> bool:
    """Whether all traces of a checkpoint are there, fitting or not."""
    return all(_path(traces, run, checkpoint, teacher).is_file() for teacher in run.teachers)


@dataclass(frozen=True, slots=True)
class _Station:
    """One checkpoint with its rollouts, to be replayed against each teacher. The student runs once for all of them, or
    not again where its hidden states are its ``own``, from sampling."""

    directory: Path
    run: RunPlan
    checkpoint: Checkpoint
    rollouts: Sequence[Rollout]
    states: StateOrigin
    own: SampledStates | None
    pool: ModelPool
    kept: KeptTeachers
    prompter: Prompter
    progress: Progress
    job_states: int

    def measured(self) -> list[Measured]:
        wanted = [self._request(teacher) for teacher in self.run.teachers]
        fingerprints = [request.fingerprint(self.rollouts) for request in wanted]
        traces = {number: request.stored(fingerprints[number], self.rollouts) for number, request in enumerate(wanted)}
        lacking = [number for number, trace in traces.items() if trace is None]
        if lacking:
            orders = {n: wanted[n].begun(self.rollouts, fingerprints[n]).order for n in lacking}
            student = self._student(wanted, lacking, orders[lacking[0]])
        for number in lacking:
            given = self.run.teachers[number], wanted[number], fingerprints[number]
            traces[number] = self._made(student, *given, ordered=orders[number] is not None)
        name, step = visible(self.run.run.name), self.checkpoint.step
        return [
            Measured(name, step, visible(teacher.name), self.states, trace, self.run.settings)
            for teacher, trace in zip(self.run.teachers, traces.values(), strict=True)
            if trace is not None
        ]

    def _request(self, teacher: Teacher) -> TraceRequest:
        settings = replace(self.run.settings.for_replay(self.run.tokenizer), job_states=self.job_states)
        if isinstance(teacher.checkpoint, ServedModel):
            settings = settings_for(teacher.checkpoint, settings, least=self.run.settings.k)
        labels = {
            "run": self.run.run.name,
            "step": self.checkpoint.step,
            "teacher": teacher.name,
            "states": self.states,
        }
        path = _path(self.directory, self.run, self.checkpoint, teacher)
        prompts = self.prompter.read(self.run, self.checkpoint, teacher, self.rollouts)
        named = self.run.settings.template
        source = str(Path(self.run.source.path).absolute()) if self.run.source.kind == "rollouts" else None
        template = None if named is None else template_source(named)
        precision = self.run.settings.wanted
        given = self.checkpoint, teacher.checkpoint, path, settings, labels, prompts, template, source
        return TraceRequest(*given, precision=precision)

    def _student(
        self, wanted: Sequence[TraceRequest], lacking: Sequence[int], order: Order | None
    ) -> LoadedModel | StoredModel:
        """The student, once every teacher is known to fit it; in a sequential run it has run then and may go."""
        teachers = self.pool.teachers(self.run)
        student = self.pool.student(self.run, self.checkpoint)
        for teacher in each_once(teachers):
            check_pair(student, teacher, self.run.settings)
        alone = bool(self.run.settings.sequential)
        if alone:
            self.progress.begin(f"run {self.run.run.name} {step_name(self.checkpoint)}")
        return shared_student(
            student,
            self.rollouts,
            wanted,
            lacking,
            existing_directory(self.directory),
            sampled=self.own,
            alone=alone,
            progress=self.progress.update,
            order=order,
        )

    def _made(
        self,
        student: LoadedModel | StoredModel,
        teacher: Teacher,
        request: TraceRequest,
        fingerprint: Mapping[str, Any],
        *,
        ordered: bool,
    ) -> Trace:
        other = self._teacher(teacher, request, ordered=ordered)
        assert request.path is not None
        self.progress.begin(f"replay {self.run.run.name} {request.path.stem} against {request.labels['teacher']}")
        with memory_advice("replaying"), _nothing_half_written(request.path):
            trace = request.make(student, other, self.rollouts, fingerprint, self.progress.update)
        with memory_advice("replaying"):
            self.kept.settle(other, self.progress.update)
        return trace

    def _teacher(
        self, teacher: Teacher, request: TraceRequest, *, ordered: bool
    ) -> LoadedModel | StoredModel | ServedModel:
        """A teacher, or what is kept of it: nothing where a replay has an order of its own, and so other batches."""
        checkpoint = teacher.checkpoint
        if isinstance(checkpoint, ServedModel):
            return checkpoint

        def load() -> LoadedModel:
            return self.pool.weights(self.run, checkpoint)

        if ordered:
            return load()
        return self.kept.teacher(self.run, self.checkpoint, teacher, request, self.rollouts, load)


@contextmanager
def _nothing_half_written(path: Path) -> Iterator[None]:
    """After bad input, remove a replay's unfinished work and the folders made for it.

    What an interrupt, a lack of memory or of disk, or a server leaves behind is kept when it holds finished rollouts,
    or what a server told of one: the next replay goes on from there.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    except OpdProbeError as error:
        partial = path.with_name(f".{path.name}.partial")
        if not (isinstance(error, (OutOfMemoryError, OutputError, ServerError)) and _has_progress(partial)):
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _has_progress(partial: Path) -> bool:
    for digests in (
        "done_digests",
        "answered_digests",
    ):  # without one are rollouts that have no state
        with suppress(OSError, ValueError):
            if np.load(partial / f"{digests}.npy", mmap_mode="r").any():
                return True
    return False
