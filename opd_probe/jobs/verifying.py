"""A sample of a trace's states, computed again from the models that its provenance names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.engine.replay import Progress, Replay
from opd_probe.engine.scoring import Columns
from opd_probe.engine.served import TOLD, ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.errors import InputError, MissingError, OpdProbeError, ServerError
from opd_probe.jobs.files import special_ids_near, tokenizer_of
from opd_probe.jobs.rendering import template_source
from opd_probe.jobs.replay import read_source
from opd_probe.jobs.served import served_model
from opd_probe.models.digests import weights_digest
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import chat_template_of, shared_vocabulary, text_digest
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.padding import without_padding
from opd_probe.rollouts.teacher_prompts import OWN, STUDENT, PromptMaker, TeacherPrompt
from opd_probe.trace import Trace
from opd_probe.types import Checkpoint, Rollout

SIDES = ("student", "teacher")

Model = LoadedModel | ServedModel


@dataclass
class Found:
    """The models of a trace, as far as they are there.

    Attributes:
        models: by side.
        missing: by side why a model is not there.
        changed: the sides whose weights are other than those that the trace was made with.
    """

    models: dict[str, Model]
    missing: dict[str, str]
    changed: list[str]


def find_models(trace: Trace, given: Mapping[str, str | None], device: str | None) -> Found:
    """Load the models that a trace names.

    Args:
        given: by side, where a model is in place of where it was.

    Raises:
        OpdProbeError: files that are there and cannot be used.
    """
    found = Found({}, {}, [])
    prints = trace.provenance.get("fingerprint") or {}
    for side in SIDES:
        identity = trace.provenance.get(side) or {}
        try:
            model = _model(identity, given.get(side), prints.get("dtype"), device, _tokenizer(trace))
        except (MissingError, ServerError) as error:
            found.missing[side] = str(error)
            continue
        if model is None:
            found.missing[side] = "was a model in memory; name one that is on disk"
            continue
        found.models[side] = model
        before = prints.get(f"{side} weights")
        if before is not None and weights_digest(model) != before:
            found.changed.append(side)
    return found


def _model(
    identity: Mapping[str, Any], given: str | None, dtype: str | None, device: str | None, tokenizer: Any
) -> Model | None:
    if given is None and identity.get("source") == "served":
        given = f"{identity['url']}#{identity['model']}"
    source: Any = given
    if given is None and identity.get("path"):
        revision, base = identity.get("revision"), identity.get("base")
        source = identity["path"]
        if identity.get("format") == "hub":
            source = Checkpoint(source, format="hub", revision=revision, base=base)
        elif base is not None and Path(source).exists():
            return load_model(source, dtype=dtype, device=device, base=base, tokenizer=tokenizer)
    if source is None:
        return None
    source = served_model(source, tokenizer)
    return source if isinstance(source, ServedModel) else load_model(source, dtype=dtype, device=device,
                                                                     tokenizer=tokenizer)  # fmt: skip


def _tokenizer(trace: Trace) -> str | None:
    """The tokenizer that the command named in place of the models' own."""
    named = ((trace.provenance.get("made_by") or {}).get("settings") or {}).get("tokenizer")
    return named if isinstance(named, str) else None


def rollouts_of(trace: Trace, place: str | Path, student: Model) -> dict[int, Rollout]:
    """The rollouts of a file as the trace has them, by their row in its rollout table.

    Raises:
        OpdProbeError: the file cannot be read, or holds other rollouts than the trace; names the first.
    """
    held = read_source(str(place))
    held = without_padding(held, special_ids_near(student, _tokenizer(trace)), None)
    by_id = {rollout.id: rollout for rollout in encode_rollouts(held, student.tokenizer)}
    positions, tokens, offsets = trace.column("position"), trace.column("token_id"), trace.rollout_offsets
    found = {}
    for row, stated in enumerate(trace.rollouts.to_pylist()):
        at = slice(int(offsets[row]), int(offsets[row + 1]))
        if at.start == at.stop:
            continue
        rollout = by_id.get(stated["rollout_id"])
        what = f"rollouts {place}: "
        if rollout is None:
            name = stated["rollout_id"]
            raise InputError(f"{what}has no rollout {name!r}, which the trace has; give the file that was replayed")
        response = np.asarray(rollout.response_ids, dtype=np.int64)
        inside = int(positions[at][-1]) < len(response)
        same = inside and np.array_equal(response[positions[at]], tokens[at])
        if not same or stated["prompt_length"] not in (None, len(rollout.prompt_ids)):
            raise InputError(f"{what}rollout {rollout.id!r} is not the one in the trace; give what was replayed")
        found[row] = rollout
    return found


def sampled_states(trace: Trace, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of the trace, ascending, drawn without regard to what they hold."""
    drawn = np.random.default_rng(seed).choice(trace.n_states, min(count, trace.n_states), replace=False)
    return np.sort(drawn).astype(np.int64)


def recomputed(
    trace: Trace,
    rollouts: Mapping[int, Rollout],
    found: Found,
    rows: NDArray[np.int64],
    progress: Progress | None = None,
) -> tuple[Columns, list[str]]:
    """The columns of some states, computed again, and what could not be.

    A model that is not there leaves out its own columns and those of both.

    Args:
        rows: of the trace, ascending.

    Raises:
        OpdProbeError: models that do not fit the trace.
    """
    lacking: list[str] = []
    student, teacher = (found.models.get(side) for side in SIDES)
    if not isinstance(student, LoadedModel):
        return {}, ["no state: the student is not there"]
    other: Model = student if teacher is None else teacher
    settings = _settings(trace)
    vocabulary = shared_vocabulary(student, other, allow_special_mismatch=settings.allow_special_mismatch)
    if vocabulary.size != trace.vocabulary_size:
        if teacher is None:
            return {}, ["no state: without the teacher it is not known which ids both models share"]
        raise InputError(
            f"trace {trace.path}: is over {trace.vocabulary_size} shared ids, the models share {vocabulary.size}; give "
            "the models that it was made with"
        )
    index = trace.rollout_index()[rows]
    chosen = np.unique(index).tolist()
    positions = trace.column("position")[rows]
    whole = settings.length_factors == "whole"
    last = {row: None if whole else int(positions[index == row].max()) + 1 for row in chosen}
    cut = [_cut(rollouts[row], last[row]) for row in chosen]
    prompts, reason = _teacher_prompts(trace, student, other, [rollouts[row] for row in chosen])
    sides = set(SIDES) if teacher is not None and reason is None else {"student"}
    lacking += [] if reason is None else [f"the teacher's columns: {reason}"]
    if teacher is None:
        lacking.append("the teacher's columns: it is not there")
    if sides == {"student"}:
        other = student
    columns = _states(student, other, cut, vocabulary.ids, settings, prompts, progress)
    place = {row: number for number, row in enumerate(chosen)}
    parts = []
    for row, position in zip(index.tolist(), positions.tolist(), strict=True):
        values = columns[place[row]]
        at = int(np.flatnonzero(values["position"] == position)[0])
        parts.append({name: values[name][at] for name in values if _of_sides(name, sides)})
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}, lacking


def _of_sides(name: str, sides: set[str]) -> bool:
    """Whether a column can be told by the models that are there."""
    if sides == set(SIDES):
        return name not in ("position", "sampler_logprob")
    return name.startswith("student_") and "teacher" not in name


def _states(
    student: LoadedModel,
    teacher: Model,
    rollouts: Sequence[Rollout],
    ids: NDArray[np.int64],
    settings: ReplaySettings,
    prompts: Sequence[Sequence[int]] | None,
    progress: Progress | None,
) -> dict[int, Columns]:
    if not isinstance(teacher, ServedModel):
        return dict(Replay(student, teacher, rollouts, ids, settings, prompts).states(None, progress))
    if teacher.allowed(settings.k) < settings.k:
        raise InputError(f"{teacher.name}: tells fewer than the {settings.k} tokens that the trace holds")
    engine = ServedReplay(student, teacher, rollouts, ids, settings, prompts)
    nothing = np.zeros(len(rollouts), dtype=bool)
    answers = {index: {name: values[name] for name in TOLD} for index, values in engine.answers(nothing, None)}
    return dict(engine.states(nothing, answers.__getitem__, progress or _untold))


def _untold(done: int, total: int) -> None: ...


def _settings(trace: Trace) -> ReplaySettings:
    prints = trace.provenance.get("fingerprint") or {}
    factors = trace.provenance.get("length_factors") or {}
    ways = trace.provenance.get("ways") or {}
    return ReplaySettings(
        k=trace.K,
        temperature=float(trace.provenance.get("temperature", 1.0)),
        jsd="jsd" in trace.columns,
        allow_special_mismatch=bool(prints.get("allow_special_mismatch")),
        length_factors=factors.get("rule") or "prefix",
        compiled=bool(ways.get("compiled")),
        native=bool(ways.get("native")),
    )


def _cut(rollout: Rollout, length: int | None) -> Rollout:
    """A rollout up to the last state that is looked at."""
    if length is None:
        return rollout
    mask, logprobs = rollout.response_mask, rollout.logprobs
    return replace(
        rollout,
        response_ids=rollout.response_ids[:length],
        response_mask=None if mask is None else mask[:length],
        logprobs=None if logprobs is None else logprobs[:length],
    )


def _teacher_prompts(
    trace: Trace, student: LoadedModel, teacher: Model, rollouts: Sequence[Rollout]
) -> tuple[Sequence[Sequence[int]] | None, str | None]:
    """What the teacher read before each response, None where it was the student's prompt; and why it is not known."""
    made = trace.provenance.get("teacher_prompt")
    if made is None:
        return None, None
    if "template" not in made:
        return None, "its prompts were given by a program, and a trace does not hold them"
    wanted = TeacherPrompt(made["template"], made.get("system"), made.get("thinking"), made.get("context"))
    try:
        template = _template(wanted.template, student, teacher)
        if template is None or text_digest(template) != made.get("template_sha256"):
            return None, "the chat template of its prompts is another one now"
        tokenizer = teacher.tokenizer or student.tokenizer
        return PromptMaker(wanted, template, wanted.template, tokenizer).ids(rollouts), None
    except OpdProbeError as error:
        return None, f"its prompts cannot be made again ({error})"


def _template(place: str, student: LoadedModel, teacher: Model) -> str | None:
    if place == STUDENT:
        return chat_template_of(student.tokenizer)
    if place == OWN:
        own = teacher.tokenizer
        if isinstance(teacher, LoadedModel) and teacher.checkpoint is not None:
            own = tokenizer_of(teacher.checkpoint, None) or own
        return chat_template_of(own)
    return template_source(place, "--teacher-template")
