"""What a finished job leaves behind, so that the same command afterwards finds its traces by digests of files alone:
neither models nor the libraries that read them are loaded to learn that nothing is to do."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from opd_probe.errors import OpdProbeError, OpdProbeWarning, PassingWarning, warn
from opd_probe.jobs.plan import Plan, RunPlan, Teacher
from opd_probe.models.checkpoints import is_checkpoint, resolve_checkpoint
from opd_probe.models.digests import content_digest, weights_digest, weights_files
from opd_probe.models.hub import home_of, localized, tokenizer_place
from opd_probe.models.samplers import sampler_version
from opd_probe.models.served.endpoint import is_url
from opd_probe.models.served.model import ServedModel
from opd_probe.options.naming import user_path
from opd_probe.options.settings import Settings
from opd_probe.output import write_bytes
from opd_probe.plain import visible
from opd_probe.rollouts.teacher_prompts import OWN, STUDENT
from opd_probe.runs.stored import Measured
from opd_probe.texts import read_json
from opd_probe.trace import read_trace
from opd_probe.trace.digest import kept_digest
from opd_probe.types import Checkpoint
from opd_probe.versions import software

RECORDS = ".finished"
"""The folder of the records, below ``--out``."""

_VERSION = 3
_ENVIRONMENT = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")
"""Variables that change how torch multiplies."""

_NO_TRACE = frozenset({"k", "average", "device", "device_map", "batch_tokens", "sequential"})
"""Settings that no trace depends on."""

_OF_METRICS = frozenset({"k", "average"})

_SMALL_FILES = (".json", ".jinja", ".model", ".txt")
_BESIDE = (".json", ".jsonl")
_FOLDERS_OF_TEMPLATES = ("additional_chat_templates",)


def stored_job(plan: Plan, key: JobKey | None) -> list[Measured] | None:
    """The traces of a plan when all that decides them is as it was when they were made or last found to fit; else None.

    What was said of them then is said again.

    Args:
        key: the plan's, of :func:`job_key`.
    """
    if key is None or not any((plan.out / RECORDS).glob("*.json")) or key.value is None:
        return None
    record = _read(_path(plan, key.value))
    if record is None:
        return None
    runs = {run.run.name: run for run in plan.runs}
    measured = []
    try:
        if any(content_digest(plan.out / name).hex() != digest for name, digest in record["samples"].items()):
            return None
        for entry in record["traces"]:
            path = plan.out / entry["path"]
            trace = read_trace(path)
            if kept_digest(path) != entry["digest"]:
                return None
            run = runs[entry["run"]]
            measured.append(
                Measured(
                    visible(entry["run"]), entry["step"], entry["teacher"], entry["states"], trace, run.settings
                )
            )  # fmt: skip
        said = [str(text) for text in record["said"]]
    except (OpdProbeError, OSError, KeyError, TypeError, AttributeError):
        return None
    for text in said:
        warn(text)
    return measured


@contextmanager
def noted(plan: Plan, key: JobKey | None) -> Iterator[list[Measured]]:
    """Keep what the block measures of a plan, which it adds to the list, and what is said meanwhile, for
    :func:`stored_job`.

    Args:
        key: the plan's from before the block, so that what changes while it runs is looked at the next time.
    """
    measured: list[Measured] = []
    with _heard() as said:
        yield measured
    name = None if key is None else key.value
    if name is None:
        return
    with suppress(OSError):  # a record saves time the next time, and is not what was asked for
        record = _record(plan, measured, said)
        if record is not None:
            write_bytes(_path(plan, name), json.dumps(record, indent=1).encode())


def _record(plan: Plan, measured: Sequence[Measured], said: Sequence[str]) -> dict[str, Any] | None:
    """What :func:`stored_job` reads; None where a trace is of an early release.

    Raises:
        OSError: a file is no longer there.
    """
    traces = []
    names = {visible(run.run.name): run.run.name for run in plan.runs}
    for one in measured:
        path = one.trace.path
        digest = None if path is None else kept_digest(path)
        if path is None or digest is None:
            return None
        traces.append(
            {
                "path": path.relative_to(plan.out).as_posix(),
                "digest": digest,
                "run": names[one.run],
                "step": one.step,
                "teacher": one.teacher,
                "states": one.states,
            }
        )
    samples = {
        file.relative_to(plan.out).as_posix(): content_digest(file).hex()
        for run in plan.runs
        if run.source.kind == "prompts"
        for file in sorted((plan.out / "rollouts" / run.folder).glob("*"))
        if file.is_file() and not file.name.startswith(".")
    }
    return {"samples": samples, "traces": traces, "said": list(said)}


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What of ours is said within the block and would be said of the same job again."""
    said: list[str] = []
    say = warnings.showwarning

    def listen(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, OpdProbeWarning) and not issubclass(category, PassingWarning):
            said.append(str(message))
        say(message, category, *place, **more)

    warnings.showwarning = listen
    try:
        yield said
    finally:
        warnings.showwarning = say


def _path(plan: Plan, key: str) -> Path:
    return plan.out / RECORDS / f"{key}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


class JobKey:
    """All that decides which traces a plan comes to and whether stored ones fit, as it was when this was made.

    Weights are not read before :attr:`value` is asked for. Where none is stored that it could be compared with, that is
    when the job is done: by then they have been read for the job itself.
    """

    def __init__(self, plan: Plan) -> None:
        self._content = {
            "version": _VERSION,
            "software": _software(plan.runs),
            "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
            "runs": [_run(run) for run in plan.runs],
        }
        models = [model for run in plan.runs for model in (*run.run.checkpoints, *map(_weights_of, run.teachers))]
        self._models = [(model, _states(model)) for model in models]

    @cached_property
    def value(self) -> str | None:
        """A digest over all of it; None when weights have changed since, or cannot be read."""
        try:
            weights = [weights_digest(model) for model, _ in self._models]
            if any(_states(model) != before for model, before in self._models):
                return None
        except (OpdProbeError, OSError, RecursionError):
            return None
        content = {**self._content, "weights": weights}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def job_key(plan: Plan) -> JobKey | None:
    """The key of a plan; None where files alone do not tell, as of models that are served or of files that cannot be
    read."""
    if any(_served(run) for run in plan.runs):
        return None
    try:
        return JobKey(plan)
    except (OpdProbeError, OSError, RecursionError):
        return None


def _weights_of(teacher: Teacher) -> Checkpoint:
    assert isinstance(teacher.checkpoint, Checkpoint)
    return teacher.checkpoint


def _states(checkpoint: Checkpoint) -> list[tuple[str, int, int, int]]:
    """What changes when one of the files does that the weights' digest is made of."""
    files = [(str(file), file.stat()) for file in weights_files(checkpoint)]
    return [(name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in files]


def _served(run: RunPlan) -> bool:
    own = run.source.kind == "prompts" and is_url(run.settings.sampler)
    return own or any(isinstance(teacher.checkpoint, ServedModel) for teacher in run.teachers)


def _software(runs: Sequence[RunPlan]) -> dict[str, str]:
    found = software()
    for run in runs:
        if run.settings.sampler == "vllm" and run.source.kind == "prompts":
            found["sampler"] = sampler_version("vllm")
    return found


def _run(run: RunPlan) -> dict[str, Any]:
    template = run.settings.template
    return {
        "name": run.run.name,
        "unit": run.run.unit,
        "folder": run.folder,
        "settings": _settings(run.settings),
        "template": None if template is None else _named(template),
        "tokenizer": None if run.tokenizer is None else _named(run.tokenizer),
        "source": [run.source.kind, run.source.path, _source(Path(run.source.path))],
        "checkpoints": [_model(checkpoint) for checkpoint in run.run.checkpoints],
        "teachers": [_teacher(teacher, run.teacher_folders[teacher.name]) for teacher in run.teachers],
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """What decides a trace. Where it says how precise a trace is to be, the metrics' own settings do too."""
    without = _NO_TRACE if settings.precision is None else _NO_TRACE - _OF_METRICS
    return {name: value for name, value in settings.model_dump(mode="json").items() if name not in without}


def _teacher(teacher: Teacher, folder: str) -> dict[str, Any]:
    template = None if teacher.prompt is None else teacher.prompt.template
    return {
        "name": teacher.name,
        "folder": folder,
        "model": _model(_weights_of(teacher)),
        "prompt": None if teacher.prompt is None else asdict(teacher.prompt),
        "template": None if template in (None, STUDENT, OWN) else _named(str(template)),
    }


def _named(place: str) -> Any:
    """What an option names: a file, or a model or a tokenizer of which its small files matter."""
    path = user_path(place)
    if path.is_file():
        return content_digest(path).hex()
    if path.is_dir() and not is_checkpoint(path):
        return _small_files([path])
    checkpoint = resolve_checkpoint(path if path.exists() else place)
    return _small_files(_places(checkpoint))


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint with the small files around it: configurations, tokenizers, templates."""
    return {**asdict(checkpoint), "files": _small_files(_places(checkpoint))}


def _places(checkpoint: Checkpoint) -> list[Path]:
    local = localized(checkpoint)
    places = [Path(local.path), home_of(local), Path(tokenizer_place(local))]
    return places + (_places(resolve_checkpoint(local.base)) if local.base is not None else [])


def _small_files(places: Sequence[Path]) -> list[list[str]]:
    found: dict[Path, str] = {}
    for place in dict.fromkeys(places):
        for folder in (place, *(place / name for name in _FOLDERS_OF_TEMPLATES)):
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if file.suffix in _SMALL_FILES and file.is_file():
                    found[file] = content_digest(file).hex()
    return [[str(file), digest] for file, digest in found.items()]


def _source(path: Path) -> Mapping[str, Any]:
    """A file of rollouts or prompts, or all below a folder of them; and what lies around it, since logs and results
    there say what some rows are."""
    path = path.resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    around = [*_beside(path.parent), *_beside(path.parent.parent)]
    around += sorted(path.parent.parent.glob("checkpoint-*/trainer_state.json"))
    around += sorted(path.parent.glob("checkpoint-*/trainer_state.json"))
    states = {str(file): file.stat() for file in around}
    return {
        "files": {str(file): content_digest(file).hex() for file in files},
        "around": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
    }


def _beside(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix in _BESIDE and file.is_file()]
