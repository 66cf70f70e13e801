"""What a request amounts to: every run with its teachers, settings and source of rollouts, all checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from opd_probe.errors import InputError, MissingError
from opd_probe.models.checkpoints import outermost, resolve_checkpoint
from opd_probe.models.samplers import check_vllm
from opd_probe.models.served.endpoint import is_url, parse_endpoint, shown
from opd_probe.models.served.model import ServedModel
from opd_probe.models.steps import step_of_name
from opd_probe.options.manifest import MANIFEST_NAME, Manifest
from opd_probe.options.naming import exists, file_names, path_parts, unique_names, user_path
from opd_probe.options.request import DEFAULT_OUT, PromptOptions, Request
from opd_probe.options.settings import Settings, agree, parse_options, settle
from opd_probe.options.variants import variant_names, variants
from opd_probe.output import check_file_writable, check_writable, output_path
from opd_probe.rollouts.rows import is_dataset
from opd_probe.rollouts.teacher_prompts import TeacherPrompt
from opd_probe.runs.discovery import Run, discover, is_hub_id
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher under the name that rows and figures give it.

    Attributes:
        checkpoint: its weights, or a server that has answered.
        prompt: what it reads before a response; None: what the student read.
    """

    name: str
    checkpoint: Checkpoint | ServedModel
    prompt: TeacherPrompt | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run's rollouts come from.

    Attributes:
        step_pattern: how the step is read from the names of rollout files and their folders; None: as it usually is.
    """

    kind: Literal["rollouts", "prompts"]
    path: str
    step_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run, ready to be measured.

    Attributes:
        folder: the run's directory name under ``traces`` and ``rollouts``.
        teacher_folders: likewise, by teacher name.
    """

    run: Run
    teachers: tuple[Teacher, ...]
    settings: Settings
    source: Source
    tokenizer: str | None
    folder: str
    teacher_folders: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a command and what holds for the whole of it."""

    runs: tuple[RunPlan, ...]
    out: Path
    format: str
    dry_run: bool


def make_plan(request: Request) -> Plan:
    """Look up everything that a request names, without loading a model or creating a file.

    Raises:
        MissingError: a path, a teacher, or a source of rollouts that is not there.
        InputError: anything else that cannot be used.
        OutputError: the output cannot be written.
    """
    plans = plan_runs(request)
    runs = [plan.run for plan in plans]
    out = output_path(request.out or _agreed("out", runs) or DEFAULT_OUT)
    for folder in ("traces", "rollouts"):
        check_writable(out / folder)
    dry_run = request.dry_run if request.dry_run is not None else bool(_agreed("dry_run", runs))
    return Plan(plans, out, result_format(request, plans), dry_run)


def plan_runs(request: Request) -> tuple[RunPlan, ...]:
    """The runs of a request, each with its teachers, settings and source of rollouts.

    Raises:
        MissingError, InputError: as :func:`make_plan`.
    """
    given = parse_options(request.options)
    runs = discover(request.ckpts, base=model_path("--base", request.base), step_pattern=request.step_pattern)
    _refuse_without_both(request, runs)
    teachers = _find_teachers(request, runs)
    tokenizer = model_path("--tokenizer", request.tokenizer)
    folders = file_names([run.name for run in runs])
    teacher_folders = file_names(sorted({t.name for found in teachers.values() for t in found}))
    plans = tuple(
        RunPlan(
            run=run,
            teachers=teachers[run.name],
            settings=settle(given, run.manifest, where=f"run {run.name}"),
            source=_find_source(request, run),
            tokenizer=tokenizer or (run.manifest.tokenizer if run.manifest else None),
            folder=folders[run.name],
            teacher_folders=teacher_folders,
        )
        for run in runs
    )
    for plan in plans:
        _check_sampler(plan)
        _check_precision(plan)
    return plans


def _refuse_without_both(request: Request, runs: Sequence[Run]) -> None:
    """Say together that a teacher and rollouts or prompts are missing; one of them is said where it is read."""
    for run in runs:
        manifest = run.manifest or Manifest()
        named = request.teachers or manifest.teacher
        source = request.rollouts or request.prompts or manifest.rollouts or manifest.prompts
        if not named and not source:
            place = run.manifest_path or f"<run>/{MANIFEST_NAME}"
            raise MissingError(
                f"run {run.name}: no teacher, and neither prompts nor rollouts; give --teacher PATH_OR_HUB_ID_OR_URL "
                f"and --prompts FILE (or --rollouts FILE), or lines 'teacher: …' and 'prompts: …' in {place}"
            )


def result_format(request: Request, plans: Sequence[RunPlan]) -> str:
    """What is printed: as asked, else as the manifests agree."""
    return request.format or _agreed("format", [plan.run for plan in plans]) or "table"


def make_sampling_plan(request: Request) -> Plan:
    """Likewise for a command that only samples: one run, prompts, and no need of a teacher.

    Raises:
        InputError: several runs, or rollouts in place of prompts; else as :func:`make_plan`.
    """
    given = parse_options(request.options)
    runs = discover(request.ckpts, base=model_path("--base", request.base), step_pattern=request.step_pattern)
    if len(runs) > 1:
        raise InputError(
            f"--ckpts: checkpoints of {len(runs)} runs ({', '.join(run.name for run in runs)}); a "
            "rollout file holds those of one run, so sample them one after another"
        )
    (run,) = runs
    manifest = run.manifest or Manifest()
    prompts = request.prompts or manifest.prompts
    if prompts is None:
        raise MissingError(
            f"run {run.name}: no prompts; give --prompts FILE, or a line 'prompts: FILE' in "
            f"{run.manifest_path or MANIFEST_NAME}"
        )
    _check_file("--prompts", prompts)
    out = output_path(request.out) if request.out else None
    if out is None or out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--out {out or ''}: expected the .jsonl or .parquet file to write".replace(" :", ":"))
    check_file_writable(out)
    plan = RunPlan(
        run=run,
        teachers=_find_teachers(request, runs, required=False)[run.name],
        settings=settle(given, manifest, where=f"run {run.name}"),
        source=Source("prompts", prompts),
        tokenizer=model_path("--tokenizer", request.tokenizer) or manifest.tokenizer,
        folder="",
        teacher_folders={},
    )
    _check_sampler(plan)
    return Plan((plan,), out, request.format or manifest.format or "table", dry_run=False)


def _agreed(name: str, runs: Iterable[Run]) -> Any:
    return agree(
        name,
        [(run.manifest_path, getattr(run.manifest, name)) for run in runs if run.manifest and run.manifest_path],
    )


def model_path(option: str, value: str | None) -> str | None:
    """A model or tokenizer that an option names: a local path, a hub id, or a URL for a teacher.

    Raises:
        MissingError: neither.
    """
    if value is None:
        return None
    if is_url(value) and option == "--teacher":
        return value
    local = user_path(value)
    if exists(local):
        return str(local)
    if is_hub_id(value):
        return value
    raise MissingError(f"{option} {shown(value)}: no such path, and not a hub id (org/name)")


def _find_teachers(request: Request, runs: Sequence[Run], *, required: bool = True) -> dict[str, tuple[Teacher, ...]]:
    """Each run's teachers under names unique over all runs; the command line's replace the manifests'."""
    sources: dict[str, list[str]] = {}
    for run in runs:
        named = [model_path("--teacher", value) or value for value in request.teachers]
        named = named or list((run.manifest.teacher if run.manifest else None) or [])
        if required and not named:
            place = run.manifest_path or f"<run>/{MANIFEST_NAME}"
            raise MissingError(
                f"run {run.name}: no teacher; name one with --teacher PATH_OR_HUB_ID_OR_URL, or with a line "
                f"'teacher: PATH_OR_HUB_ID_OR_URL' in {place}"
            )
        sources[run.name] = list({_identity(value): value for value in reversed(named)}.values())[::-1]
    distinct = {_identity(value): value for values in sources.values() for value in values}
    served = _served_teachers(request, runs, distinct)
    names = unique_names({key: _teacher_parts(key, value, served.get(key)) for key, value in distinct.items()})
    checkpoints = {key: served.get(key) or resolve_checkpoint(value, run=names[key]) for key, value in distinct.items()}
    wanted = {
        run.name: [(_identity(value), prompt) for value in sources[run.name] for prompt in _find_prompts(request, run)]
        for run in runs
    }
    called = variant_names(names, [pair for pairs in wanted.values() for pair in pairs])
    return {
        run: tuple(
            sorted((Teacher(called[pair], checkpoints[pair[0]], pair[1]) for pair in pairs), key=lambda t: t.name)
        )
        for run, pairs in wanted.items()
    }


def _find_prompts(request: Request, run: Run) -> list[TeacherPrompt | None]:
    """What a run's teachers read: for each option the command line's values, else the manifest's."""
    given = request.teacher_prompt
    stated = run.manifest.teacher_prompt if run.manifest else PromptOptions()
    chosen = {name: value or getattr(stated, name) for name, value in asdict(given).items()}
    return variants(PromptOptions(**chosen), lambda value: model_path("--teacher-template", value) or value)


def _served_teachers(request: Request, runs: Sequence[Run], teachers: Mapping[str, str]) -> dict[str, ServedModel]:
    """Those teachers that are behind HTTP, asked who they are."""
    urls = {key: value for key, value in teachers.items() if is_url(value)}
    tokenizer = model_path("--teacher-tokenizer", request.teacher_tokenizer)
    if tokenizer is not None and not urls:
        raise InputError("--teacher-tokenizer: no teacher is served; weights have their tokenizer beside them, or "
                         "take --tokenizer")  # fmt: skip
    if not urls:
        return {}
    from opd_probe.jobs.served import served_model

    tokenizer = tokenizer or _agreed("teacher_tokenizer", runs) or request.tokenizer or _agreed("tokenizer", runs)
    return {key: served_model(value, tokenizer) for key, value in urls.items()}


def _identity(model: str) -> str:
    if is_url(model):
        return str(parse_endpoint(model))
    return str(outermost(real_path(model))) if exists(Path(model)) else f"hub:{model}"


def _teacher_parts(identity: str, model: str, served: ServedModel | None) -> tuple[str, ...]:
    """Path components of a teacher; a step directory's name says nothing without its run's."""
    if served is not None:
        return served.endpoint.url, Path(served.model).name if served.model.startswith("/") else served.model
    if identity.startswith("hub:"):
        return (model,)
    parts = path_parts(outermost(Path(os.path.normpath(Path(model).absolute()))))
    if len(parts) > 1 and step_of_name(parts[-1]) is not None:
        return (*parts[:-2], f"{parts[-2]}/{parts[-1]}")
    return parts


def _find_source(request: Request, run: Run) -> Source:
    if request.rollouts and request.prompts:
        raise InputError("--rollouts and --prompts: both are given; keep one of them")
    manifest = run.manifest or Manifest()
    for kind, option, entry in (
        ("rollouts", request.rollouts, None),
        ("prompts", request.prompts, None),
        ("rollouts", None, manifest.rollouts),
        ("prompts", None, manifest.prompts),
    ):
        if option:
            _check_file(f"--{kind}", option, folders=kind == "rollouts")
        if path := option or entry:
            pattern = request.step_pattern or manifest.step_pattern
            return Source("rollouts" if kind == "rollouts" else "prompts", path, pattern)
    place = run.manifest_path or f"<run>/{MANIFEST_NAME}"
    raise MissingError(
        f"run {run.name}: neither rollouts nor prompts; give --rollouts FILE to replay stored responses or "
        f"--prompts FILE to sample new ones, or name one of them in {place}"
    )


def _check_sampler(plan: RunPlan) -> None:
    settings = plan.settings
    if is_url(settings.sampler) and plan.source.kind == "prompts":
        from opd_probe.models.served.sampling import served_checkpoint

        for checkpoint in plan.run.checkpoints:
            served_checkpoint(parse_endpoint(settings.sampler), checkpoint, alone=len(plan.run.checkpoints) == 1)
    if settings.sampler == "vllm" and plan.source.kind == "prompts":
        for checkpoint in plan.run.checkpoints:
            check_vllm(checkpoint, dtype=settings.dtype, temperature=settings.sample_temperature)


def _check_precision(plan: RunPlan) -> None:
    """Refuse to wait for what will not be measured."""
    wanted = plan.settings.wanted
    if wanted is None:
        return
    if "jsd" in wanted.widths and not plan.settings.jsd:
        raise InputError("--precision of jsd: it is measured only with --jsd; add it")
    if any(isinstance(teacher.checkpoint, ServedModel) for teacher in plan.teachers):
        from opd_probe.jobs.stopping import check_told

        check_told(wanted)


def _check_file(option: str, value: str, *, folders: bool = False) -> None:
    path = Path(value)
    if not (path.is_file() or is_dataset(path) or (folders and path.is_dir())):
        what = "is a directory" if path.is_dir() else "no such file"
        raise MissingError(f"{option} {value}: {what}")
