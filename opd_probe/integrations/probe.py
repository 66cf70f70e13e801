"""One measurement of a model in training: what ``opd-probe overlap`` does for a checkpoint, from loaded models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from opd_probe.curves.summary import summary_row
from opd_probe.errors import InputError, MissingError, warn
from opd_probe.jobs.own_states import sampled_model, states_to_keep
from opd_probe.jobs.rendering import template_source, thinking_of
from opd_probe.jobs.sampling import check_pair, draw, step_name
from opd_probe.jobs.served import settings_for
from opd_probe.jobs.tracing import TraceRequest
from opd_probe.models.checkpoints import looks_like_hub_id
from opd_probe.models.loading import LoadedModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.served.endpoint import is_url
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import chat_template_of
from opd_probe.options.manifest import MANIFEST_NAME, read_manifest
from opd_probe.options.naming import file_names, user_path
from opd_probe.options.request import PromptOptions
from opd_probe.options.settings import Settings, parse_options, settle
from opd_probe.options.variants import variant_names, variants
from opd_probe.output import check_writable, existing_directory, output_path, write_bytes
from opd_probe.progress import Silent
from opd_probe.rollouts.chat import prompts_with, rollouts_with
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.files import read_rollouts, rollouts_digest, rollouts_from_dicts, write_rollouts
from opd_probe.rollouts.prompts import read_prompts
from opd_probe.rollouts.selection import drawn
from opd_probe.rollouts.teacher_prompts import OWN, STUDENT, PromptMaker, TeacherPrompt, TeacherPrompts
from opd_probe.texts import read_text
from opd_probe.trace import Trace
from opd_probe.types import Checkpoint, Prompt, Rollout

OPTIONS = (
    "k", "trace_k", "temperature", "sample_temperature", "max_new_tokens", "num_rollouts", "max_states", "seed",
    "batch_tokens", "average", "jsd", "dtype", "allow_special_mismatch",
    "length_factors", "student_states", "thinking", "template_kwargs",
)  # fmt: skip
"""The options of ``opd-probe.yaml`` that make sense for models that are loaded already."""

TEACHER_PROMPT = ("teacher_template", "teacher_system", "teacher_thinking", "teacher_context")
"""What the teacher reads in place of what the student read, one value each."""

SAMPLING = ("sample_temperature", "max_new_tokens", "num_rollouts")
"""Those of them that fixed rollouts have no use for."""

LOGGED = (
    "overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass", "student_topk_mass",
    "teacher_topk_mass", "entropy_gap", "student_entropy", "teacher_entropy", "reverse_kl", "forward_kl",
    "sampled_reward", "extreme_advantage_gap", "accuracy", "reward_auroc", "response_length", "truncation_rate",
)  # fmt: skip
"""The quantities that become curves of the trainer's logger; a trace answers for all others."""

Source = str | Path | Iterable[Any]


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The options of a probe with their defaults, which are those of ``opd-probe overlap``.

    Raises:
        InputError: an option that there is none of, or a value that cannot be used.
    """
    for name in options:
        if name not in (*OPTIONS, *TEACHER_PROMPT):
            accepted = ", ".join((*OPTIONS, *TEACHER_PROMPT))
            raise InputError(f"option {name!r}: unknown here; expected one of {accepted}")
    return settle(parse_options({name: options[name] for name in OPTIONS if name in options}), None, where="options")


def teacher_prompt_of(options: Mapping[str, Any]) -> TeacherPrompt | None:
    """What the teacher reads; None: what the student read.

    Raises:
        MissingError, InputError: a value that cannot be used, or several of them.
    """
    given = {name.removeprefix("teacher_"): options.get(name) for name in TEACHER_PROMPT}
    for name, value in given.items():
        if value is not None and not isinstance(value, (str, bool) if name == "thinking" else str):
            raise InputError(f"option 'teacher_{name}': {type(value).__name__}; expected one text")
    words = {name: {True: "on", False: "off"}.get(value, value) for name, value in given.items() if value is not None}
    (prompt,) = variants(PromptOptions(**{name: (value,) for name, value in words.items()}), _template_place)
    return prompt


def _template_place(value: str) -> str:
    path = user_path(value)
    if path.exists():
        return str(path.absolute())
    if looks_like_hub_id(value):
        return value
    raise MissingError(f"teacher_template {value}: no such file or model; expected a Jinja file, a path or a hub id")


@dataclass(frozen=True, slots=True)
class Probe:
    """What every measurement of one run shares.

    Attributes:
        run: the run's name.
        teacher: the teacher's name.
        out: the directory for ``traces`` and ``rollouts``, laid out as ``opd-probe overlap --out`` does it.
        source: the file of the prompts, or of the fixed rollouts.
        prompts: sampled from anew by each student (its ``own`` states); empty for fixed rollouts.
        rollouts: replayed as they are (one ``fixed`` set of states).
        reads: what the teacher reads before a response; None: what the student read.
        stated: the options that say so, as they were given.
    """

    run: str
    teacher: str
    out: Path
    settings: Settings
    source: Path
    prompts: Sequence[Prompt] = ()
    rollouts: Sequence[Rollout] = ()
    reads: TeacherPrompt | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)

    def trace_path(self, step: int) -> Path:
        """Where the trace of a step is."""
        folder = self.out / "traces" / file_names([self.run])[self.run] / file_names([self.teacher])[self.teacher]
        return folder / f"{step_name(Checkpoint('', step=step))}.parquet"

    def steps_after(self, step: int) -> list[int]:
        """The steps beyond this one that have a trace, which an earlier training left."""
        names = (path.stem.removeprefix("step-") for path in self.trace_path(step).parent.glob("step-*.parquet"))
        return sorted(int(name) for name in names if name.isdecimal() and int(name) > step)

    def measure(
        self, student: LoadedModel, teacher: LoadedModel | ServedModel, step: int, labels: Mapping[str, Any]
    ) -> Trace:
        """Sample, replay through both models and write the trace of one step, in place of one that is there.

        Raises:
            OpdProbeError: models that do not fit each other or the prompts, no memory, or logits that are not finite.
        """
        check_pair(student, teacher, self.settings)
        rollouts, own = self._states(student, teacher, step)
        path = self.trace_path(step)
        # The weights are not hashed: whatever an earlier process left unfinished here may be of other ones.
        shutil.rmtree(path.with_name(f".{path.name}.partial"), ignore_errors=True)
        settings = self.settings.for_replay()
        if isinstance(teacher, ServedModel):
            teacher.look_again()  # its weights may have been replaced since the step before
            settings = settings_for(teacher, settings, least=self.settings.k)
        states = "own" if self.prompts else "fixed"
        named = {"run": self.run, "step": step, "teacher": self.teacher, "states": states, **labels}
        read = self._teacher_prompts(student, teacher, rollouts)
        request = TraceRequest(student, teacher, path, settings, named, read)
        known = request.teacher_parts() if isinstance(teacher, ServedModel) else {}
        place = existing_directory(path.parent)
        read_already = sampled_model(student, rollouts, own, settings, place) or student
        return request.make(read_already, teacher, rollouts, {"rollouts": rollouts_digest(rollouts), **known}, None)

    def _states(
        self, student: LoadedModel, teacher: LoadedModel | ServedModel, step: int
    ) -> tuple[list[Rollout], SampledStates | None]:
        settings, variables = self.settings, self._variables(student)
        if not self.prompts:
            rollouts = rollouts_with(self.rollouts, variables)
            given = encode_rollouts(rollouts, student.tokenizer, student.eos_ids)
            return drawn(given, settings.max_states, settings.seed), None
        checkpoint = Checkpoint("", run=self.run, step=step)
        prompts = prompts_with(self.prompts, variables)
        path = self.trace_path(step)
        own = states_to_keep(student, settings, existing_directory(path.parent))
        sampled = draw(student, [teacher], checkpoint, prompts, settings, Silent(), states=own)
        write_rollouts(self.out / "rollouts" / path.parents[1].name / path.name, sampled)
        return drawn(sampled, settings.max_states, settings.seed), own

    def _variables(self, student: LoadedModel) -> dict[str, Any]:
        """What options give the template of chat messages, as ``opd-probe overlap`` reads them."""
        named, thinking = dict(self.settings.template_kwargs or {}), self.settings.thinking
        return named if thinking is None else named | thinking_of(student.tokenizer, student.name, thinking)

    def _teacher_prompts(
        self, student: LoadedModel, teacher: LoadedModel | ServedModel, rollouts: Sequence[Rollout]
    ) -> TeacherPrompts | None:
        if self.reads is None:
            return None
        place, tokenizer = self.reads.template, teacher.tokenizer or student.tokenizer
        named = place not in (STUDENT, OWN)
        owner = student.tokenizer if place == STUDENT else tokenizer
        template = template_source(place, "--teacher-template") if named else chat_template_of(owner)
        if template is None or tokenizer is None:
            raise InputError(
                f"teacher_template {place}: no chat template there to make the teacher's prompts with; name a Jinja "
                "file, or a model that has one"
            )
        return PromptMaker(self.reads, template, place, tokenizer).prompts(rollouts)

    def values(self, trace: Trace) -> dict[str, float]:
        """The known quantities of :data:`LOGGED` and ``n_states``. What is undefined or infinite is left out."""
        row = summary_row(trace, self.settings.k, average=self.settings.average, resamples=0)
        return {name: float(row[name]) for name in (*LOGGED, "n_states") if np.isfinite(row.get(name, np.nan))}


def make_probe(
    directory: Path,
    *,
    prompts: Source | None,
    rollouts: Source | None,
    teacher: str,
    run: str | None,
    out: str | Path | None,
    options: Mapping[str, Any],
) -> Probe:
    """The probe of the run that trains into ``directory``. Inputs given as values are written beside the traces.

    Raises:
        OpdProbeError: neither prompts nor rollouts or both, or ones that cannot be used; no place to write.
    """
    if (prompts is None) == (rollouts is None):
        raise InputError("prompts and rollouts: expected one of them; for both kinds of states add two callbacks")
    settings, reads = settings_of(options), teacher_prompt_of(options)
    stated = {name: options[name] for name in TEACHER_PROMPT if options.get(name) is not None}
    teacher = variant_names({teacher: teacher}, [(teacher, reads)])[teacher, reads]
    place = directory / "opd-probe" if out is None else output_path(out)
    check_writable(place)
    name = run or directory.absolute().name
    if prompts is not None:
        source = _prompt_file(prompts, place)
        return Probe(name, teacher, place, settings, source, read_prompts(source), reads=reads, stated=stated)
    assert rollouts is not None
    source = _rollout_file(rollouts, place)
    return Probe(name, teacher, place, settings, source, (), read_rollouts(source), reads, stated)


def _prompt_file(given: Source, place: Path) -> Path:
    if isinstance(given, (str, Path)):
        return Path(given)
    expected = "expected a file, or texts or rows of JSON values with prompt or messages"
    rows = _rows("prompts", given, expected)
    try:
        lines = [json.dumps(_prompt_row(one), ensure_ascii=False) for one in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"prompts: {expected} ({error})") from None
    return write_bytes(place / "prompts.jsonl", "".join(f"{line}\n" for line in lines).encode())


def _prompt_row(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        return {"prompt": given}
    if not isinstance(given, Prompt):
        return dict(given)
    names = {"text": "prompt", "ids": "prompt_ids"}
    return {names.get(name, name): value for name, value in asdict(given).items() if value is not None}


def _rollout_file(given: Source, place: Path) -> Path:
    if isinstance(given, (str, Path)):
        return Path(given)
    rows = _rows("rollouts", given, "expected a file, or rows with prompt_ids and response_ids")
    path = place / "rollouts.parquet"
    write_rollouts(path, rows if all(isinstance(row, Rollout) for row in rows) else rollouts_from_dicts(rows))
    return path


def _rows(name: str, given: Any, expected: str) -> list[Any]:
    if isinstance(given, Mapping) or not isinstance(given, Iterable):  # a mapping is one row, not the rows
        raise InputError(f"{name} of type {type(given).__name__}: {expected}")
    if not (rows := list(given)):
        raise InputError(f"{name}: empty; expected at least one")
    return rows


_WRITTEN = "# Written while the run trained; opd-probe overlap --ckpts reads it.\n"


def write_manifest(directory: Path, probe: Probe, models: Mapping[str, str | None]) -> Path:
    """``opd-probe.yaml`` of a run: what its checkpoints do not say. One that is there already is kept.

    Args:
        models: ``teacher`` and ``student`` as paths or hub ids; None: unknown, and left out.
    """
    path = directory / MANIFEST_NAME
    kind = "prompts" if probe.prompts else "rollouts"
    values: dict[str, Any] = {name: _reference(model, directory) for name, model in models.items()}
    values = {name: value for name, value in values.items() if value is not None}
    # All that decides the numbers, at its default or not; but dtype, which is of the teacher's weights alone here.
    left_out = {"dtype", *(() if probe.prompts else SAMPLING)}
    options = {name: getattr(probe.settings, name) for name in OPTIONS if name not in left_out}
    values |= {kind: _reference(str(probe.source), directory)}
    values |= {name: _stated(name, value, directory) for name, value in probe.stated.items()}
    values |= {name: value for name, value in options.items() if value is not None}
    text = _manifest_text(values)
    if not path.exists():
        return write_bytes(path, text.encode())
    read_manifest(path)
    if yaml.safe_load(read_text(path)) != values:
        warn(f"manifest {path}: is there already and says something else; kept as it is")
    return path


def _manifest_text(values: Mapping[str, Any]) -> str:
    return _WRITTEN + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def forget_teacher(directory: Path) -> bool:
    """Take the teacher out of the manifest that :func:`write_manifest` left; whether there was one to take out."""
    path = directory / MANIFEST_NAME
    text = read_text(path) if path.is_file() else ""
    values = yaml.safe_load(text) if text.startswith(_WRITTEN) else {}
    if "teacher" not in values:
        return False
    write_bytes(path, _manifest_text({name: value for name, value in values.items() if name != "teacher"}).encode())
    return True


def _stated(name: str, value: Any, directory: Path) -> Any:
    """What an option was given, as the manifest has it: a file relative to it."""
    files = name in ("teacher_template", "teacher_system") and len(value.split()) == 1 and user_path(value).exists()
    return os.path.relpath(user_path(value).absolute(), directory.absolute()) if files else value


def _reference(model: str | None, directory: Path) -> str | None:
    """A path as the manifest names it, relative to it; a hub id as it is; None for a name that leads nowhere."""
    if not model:
        return None
    if Path(model).exists():
        return os.path.relpath(Path(model).absolute(), directory.absolute())
    return model if is_url(model) or looks_like_hub_id(model) else None
