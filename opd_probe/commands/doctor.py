"""The public ``doctor()``, and ``opd-probe doctor``: a pair and a handful of rollouts in, the checklist out."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from opd_probe.checks import CheckOptions, Finding, Pair, examine, gather
from opd_probe.checks.evidence import REPETITION_LENGTH
from opd_probe.commands.reference import check_reference
from opd_probe.commands.result import Result
from opd_probe.engine.replay import Progress as StatesDone
from opd_probe.engine.settings import BATCH_TOKENS, ReplaySettings
from opd_probe.errors import InputError
from opd_probe.jobs.files import Files, special_ids_near
from opd_probe.jobs.memory import memory_advice
from opd_probe.jobs.plan import RunPlan, Teacher, model_path, plan_runs, result_format
from opd_probe.jobs.pool import ModelPool
from opd_probe.jobs.prompting import Prompter
from opd_probe.jobs.rendering import student_tokenizer
from opd_probe.jobs.replay import RolloutsSource, prompts_as_given, read_source
from opd_probe.jobs.sampling import draw
from opd_probe.jobs.served import served_model
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.served.model import ServedModel
from opd_probe.options.request import DEFAULT_OUT, Request
from opd_probe.progress import Progress
from opd_probe.results.tables import json_row, present
from opd_probe.rollouts.padding import without_padding
from opd_probe.rollouts.teacher_prompts import TeacherPrompts
from opd_probe.types import Checkpoint, Rollout

if TYPE_CHECKING:
    from opd_probe.models.placement import DeviceMap

Item = TypeVar("Item")

COLUMNS = ("status", "check", "figure", "advice")
HANDFUL = 16
"""Rollouts that are looked at, unless asked otherwise."""


def doctor(
    student: Any,
    teacher: Any,
    rollouts: RolloutsSource,
    *,
    teacher_prompts: Sequence[Any] | None = None,
    teacher_weights: Any = None,
    k: int = 16,
    temperature: float = 1.0,
    max_rollouts: int = HANDFUL,
    repetition_length: int = REPETITION_LENGTH,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    batch_tokens: int = BATCH_TOKENS,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    allow_special_mismatch: bool = False,
    trust_remote_code: bool = False,
    progress: StatesDone | None = None,
) -> list[Finding]:
    """A checklist on a pair of models and a handful of rollouts, before a long job.

    What a replay would refuse is a finding here. A check that cannot be made has the status ``skip``, which is not ok.
    Models on disk are loaded one after the other, and only one is in memory at a time.

    Args:
        student, teacher, rollouts: as for :func:`opd_probe.replay`.
        teacher_prompts: for each rollout what the teacher reads before the response, as for :func:`opd_probe.replay`.
        teacher_weights: of a teacher behind HTTP, as a path, a hub id or a model: both score the same tokens.
        k: of the top-k lists that a trainer would use.
        temperature: both scored distributions are softmax(logits / temperature).
        max_rollouts: how many rollouts are looked at; of more, a sample that ``seed`` decides.
        repetition_length: L of the repetition rate, in characters.
        dtype, device, device_map, batch_tokens, tokenizer, teacher_tokenizer, allow_special_mismatch,
            trust_remote_code: as for :func:`opd_probe.replay`.
        progress: called with (states done, states in all) of each pass.

    Returns:
        One finding for each check, in the order of :data:`opd_probe.checks.CHECKS`.

    Raises:
        OpdProbeError: models or rollouts that cannot be read at all, in one line.
    """
    options = CheckOptions(k, temperature, batch_tokens, allow_special_mismatch, repetition_length)
    _check(options, max_rollouts)
    load: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map, "tokenizer": tokenizer}
    load["trust_remote_code"] = trust_remote_code
    given = read_source(rollouts)
    places = handful(range(len(given)), max_rollouts, seed)
    known = served_model(teacher, teacher_tokenizer if teacher_tokenizer is not None else tokenizer)
    served = isinstance(known, ServedModel)
    if teacher_weights is not None and not served:
        raise InputError("teacher_weights: the teacher is not served; leave it out")
    given = without_padding(given, special_ids_near(student, tokenizer), None)

    def load_teacher() -> LoadedModel | ServedModel:
        if isinstance(student, (str, Path, Checkpoint)):
            gc.collect()  # modules hold reference cycles: without it the student would stay beside it
        return known if served else load_model(known, **load)

    pair = Pair(
        lambda: load_model(student, **load),
        load_teacher,
        None if teacher_weights is None else lambda: load_model(teacher_weights, **load),
        None if teacher_prompts is None else prompts_as_given(known, tokenizer, teacher_prompts, given).ids,
    )
    if pair.prompts is not None:
        pair = replace(pair, prompts=[pair.prompts[place] for place in places])
    with memory_advice("checking"):
        chosen = [given[place] for place in places]
        return examine(gather(pair, chosen, options, stage=lambda _: progress, everything=given))


def _check(options: CheckOptions, max_rollouts: int) -> None:
    ReplaySettings(options.k, temperature=options.temperature, batch_tokens=options.batch_tokens).check()
    for name, value in (("max_rollouts", max_rollouts), ("repetition_length", options.repetition_length)):
        if value < 1:
            raise InputError(f"{name} = {value}: expected at least 1")


def handful(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """At most ``count`` items in their order; of more, a seeded sample."""
    if len(items) <= count:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), size=count, replace=False)
    return [items[index] for index in sorted(chosen.tolist())]


def check_runs(
    request: Request,
    progress: Progress,
    *,
    teacher_weights: str | None = None,
    max_rollouts: int = HANDFUL,
    repetition_length: int = REPETITION_LENGTH,
    reference: str | None = None,
) -> tuple[Result, bool]:
    """The checklist of every run of a request, at its last checkpoint that has rollouts, against each of its teachers.

    Args:
        teacher_weights: of served teachers.
        reference: the model that the teachers were made of by quantising it: what that cost is one more line, with a
            table and a figure in the request's ``out``.

    Returns:
        Rows, and whether a check failed.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    weights = model_path("--teacher-weights", teacher_weights)
    reference = model_path("--reference", reference)
    plans = plan_runs(request)
    if weights is not None and not any(isinstance(t.checkpoint, ServedModel) for plan in plans for t in plan.teachers):
        raise InputError("--teacher-weights: no teacher is served; leave it out")
    files, pool = Files(plans), ModelPool(progress)
    plans = tuple(_narrowed(plan, files) for plan in plans)
    rows = []
    for plan in plans:
        settings = plan.settings
        options = CheckOptions(
            settings.k,
            settings.temperature,
            settings.batch_tokens,
            settings.allow_special_mismatch,
            repetition_length,
            sampled=plan.source.kind == "prompts",
        )
        _check(options, max_rollouts)
        everything = _rollouts(plan, files, pool, max_rollouts, progress)
        rollouts = handful(everything, max_rollouts, settings.seed)
        rows += _rows(plan, weights, everything, rollouts, options, pool, progress)
        if reference is not None:
            rows += _reference_rows(plan, reference, rollouts, Path(request.out or DEFAULT_OUT), progress)
    several = len({(row["run"], row["teacher"]) for row in rows}) > 1
    columns = (*(("run", "step", "teacher") if several else ()), *COLUMNS)
    format = result_format(request, plans)
    shown = rows if format == "json" else [{n: v for n, v in row.items() if n != "values"} for row in rows]
    return Result(shown, present(columns, shown), format), any(row["status"] == "fail" for row in rows)


def _rows(
    plan: RunPlan,
    weights: str | None,
    everything: Sequence[Rollout],
    rollouts: Sequence[Rollout],
    options: CheckOptions,
    pool: ModelPool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The findings on a run with each of its teachers."""

    def stage(task: str) -> StatesDone:
        progress.begin(f"check {plan.run.name}: {task}")
        return progress.update

    rows, prompter, (checkpoint,) = [], Prompter(), plan.run.checkpoints
    for teacher in plan.teachers:
        pair = _pair(plan, teacher, weights, pool, prompter.read(plan, checkpoint, teacher, rollouts))
        names = {"run": plan.run.name, "step": checkpoint.step, "teacher": teacher.name}
        with memory_advice("checking"):
            findings = examine(gather(pair, rollouts, options, stage=stage, everything=everything))
        rows += [names | _row(finding) for finding in findings]
    return rows


def _reference_rows(
    plan: RunPlan, reference: str, rollouts: Sequence[Rollout], out: Path, progress: Progress
) -> list[dict[str, Any]]:
    """What is between each teacher of a run and the model that it was made of."""
    rows, prompter, (checkpoint,) = [], Prompter(), plan.run.checkpoints
    for teacher in plan.teachers:
        progress.begin(f"check {plan.run.name}: {teacher.name} against its reference")
        prompts = prompter.read(plan, checkpoint, teacher, rollouts)
        with memory_advice("checking"):
            row = check_reference(plan, teacher, reference, rollouts, prompts, out, progress.update)
        rows.append({"run": plan.run.name, "step": checkpoint.step, "teacher": teacher.name, **row})
    return rows


def _narrowed(plan: RunPlan, files: Files) -> RunPlan:
    """The run with one checkpoint, and one model in memory at a time unless asked otherwise: a handful of rollouts is
    quick to run."""
    alone = plan.settings.sequential is None or plan.settings.sequential
    return replace(
        plan,
        run=replace(plan.run, checkpoints=(_checkpoint(plan, files),)),
        settings=plan.settings.model_copy(update={"sequential": alone}),
    )


def _checkpoint(plan: RunPlan, files: Files) -> Checkpoint:
    """The last checkpoint that prompts can be sampled from, or that the file has rollouts for.

    Raises:
        OpdProbeError: a file that cannot be used, or that has rollouts for none.
    """
    latest = plan.run.checkpoints[-1]
    if plan.source.kind == "prompts":
        files.prompts(plan)
        return latest
    rollouts = files.rollouts(plan.source)
    steps = {rollout.step for rollout in rollouts}
    for checkpoint in reversed(plan.run.checkpoints):
        if checkpoint.step is not None and checkpoint.step + plan.settings.step_offset in steps:
            return checkpoint
    files.replayed(plan, latest)  # without steps; or it says which there are
    return latest


def _pair(
    plan: RunPlan, teacher: Teacher, weights: str | None, pool: ModelPool, prompts: TeacherPrompts | None
) -> Pair:
    """What a pool loads when it is asked for."""
    return Pair(
        lambda: _templated(pool.student(plan, plan.run.checkpoints[-1]), plan),
        lambda: pool.teacher(plan, teacher.checkpoint),
        None if weights is None else lambda: pool.weights(plan, resolve_checkpoint(weights)),
        None if prompts is None else prompts.ids,
    )


def _templated(student: LoadedModel, plan: RunPlan) -> LoadedModel:
    """The student as its prompts are made."""
    own = student_tokenizer(student.tokenizer, plan.settings)
    return student if own is student.tokenizer else replace(student, tokenizer=own)


def _rollouts(plan: RunPlan, files: Files, pool: ModelPool, count: int, progress: Progress) -> list[Rollout]:
    """All of the file's, or a handful sampled from the student."""
    settings, (checkpoint,) = plan.settings, plan.run.checkpoints
    if plan.source.kind == "rollouts":
        return files.replayed(plan, checkpoint)[0]
    prompts = files.prompts(plan)
    prompts = prompts[: max(1, count // settings.num_rollouts)]
    settings = settings.model_copy(update={"num_rollouts": min(settings.num_rollouts, count)})
    student = pool.sampled_student(plan, checkpoint)
    try:
        return draw(student, pool.sampled_teachers(plan), checkpoint, prompts, settings, progress)
    except InputError:  # what keeps a teacher from these states is a finding; the student may sample nevertheless
        return draw(pool.sampled_student(plan, checkpoint), [], checkpoint, prompts, settings, progress)


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "status": finding.status,
        "figure": finding.figure,
        "advice": finding.advice or None,
        "values": {name: _plain(value) for name, value in json_row(finding.values).items()},
    }


def _plain(value: Any) -> Any:
    """Lists of numbers in JSON types."""
    if not isinstance(value, list):
        return value
    return [None if isinstance(entry, float) and not math.isfinite(entry) else entry for entry in value]
