"""The public ``replay()`` and ``replay_teachers()``: models and rollouts in, traces out."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from opd_probe.engine.replay import Progress
from opd_probe.engine.settings import BATCH_TOKENS, TRACE_K, ReplaySettings
from opd_probe.errors import InputError
from opd_probe.jobs.files import special_ids_near, tokenizer_of
from opd_probe.jobs.memory import is_large, too_large_together
from opd_probe.jobs.served import served_model, settings_for
from opd_probe.jobs.size import states_of
from opd_probe.jobs.tracing import TraceRequest, shared_student
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.placement import DeviceMap
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.options.naming import file_names, user_path
from opd_probe.options.precision import METRICS_K, Precision, parse_widths
from opd_probe.output import check_file_writable, existing_directory, output_path
from opd_probe.rollouts.encoding import encode_rollouts, warn_of_text
from opd_probe.rollouts.files import read_rollouts, rollouts_from_dicts
from opd_probe.rollouts.padding import without_padding
from opd_probe.rollouts.reading import checked_set
from opd_probe.rollouts.teacher_prompts import TeacherPrompts, given_prompts
from opd_probe.texts import real_path
from opd_probe.trace import Trace
from opd_probe.types import Checkpoint, LengthRule, Rollout

RolloutsSource = str | Path | Iterable[Mapping[str, Any]] | Sequence[Rollout]


class ReplayOptions(TypedDict, total=False):
    """The keywords of :func:`replay` that :func:`replay_teachers` takes too."""

    k: int
    jsd: bool
    length_factors: LengthRule
    temperature: float
    dtype: str | None
    device: str | None
    device_map: DeviceMap | None
    batch_tokens: int
    chunk: int | None
    compiled: bool | None
    tokenizer: Any
    teacher_tokenizer: Any
    allow_special_mismatch: bool
    trust_remote_code: bool
    reuse: bool
    sequential: bool | None
    precision: float | Mapping[str, float] | None
    progress: Progress | None


def replay(
    student: Any,
    teacher: Any,
    rollouts: RolloutsSource,
    k: int = TRACE_K,
    jsd: bool = False,
    out: str | Path | None = None,
    *,
    temperature: float = 1.0,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    batch_tokens: int = BATCH_TOKENS,
    chunk: int | None = None,
    compiled: bool | None = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    allow_special_mismatch: bool = False,
    trust_remote_code: bool = False,
    length_factors: LengthRule = "prefix",
    teacher_prompts: Sequence[Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    reuse: bool = True,
    sequential: bool | None = None,
    precision: float | Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Run student and teacher over the same student-visited states and keep what every metric needs.

    Args:
        student, teacher: a checkpoint directory, a hub id, a :class:`Checkpoint`, a loaded transformers model, or
            a :class:`LoadedModel`. The teacher may also be the URL of a vLLM or SGLang server, ``http://host:port`` or
            ``http://host:port#model``: what its top list does not tell is NaN then.
        rollouts: a rollout file (JSONL or Parquet), or dictionaries with ``prompt_ids`` and ``response_ids``.
        k: the depth K of the stored top lists, capped at the shared vocabulary. Metrics answer for any k ≤ K.
        jsd: also store the Jensen-Shannon divergence (costs another pass over the logits).
        out: the trace file to write; None keeps the trace in memory. An interrupted replay with the same
            ``out`` goes on where it stopped, and a finished one that still fits is used again.
        temperature: both scored distributions are softmax(logits / temperature).
        dtype: type to load the weights in; None: as stored. Statistics are float32 either way.
        device: ``"cpu"``, ``"cuda"``, …; None: a GPU when there is one.
        device_map: in place of ``device``, for models that outgrow one GPU: how each is spread over several, and over
            main memory, as transformers names it (``"auto"``, ``"balanced"``, …). Needs accelerate.
        batch_tokens: tokens per batch, padding included. Does not change the numbers.
        chunk: positions whose logits are held at a time; None: chosen by the width of the output layer.
        compiled: whether the passes over the logits, and on a CPU the product of bf16 weights, are compiled, which
            takes 10 to 30 s once and halves the time of the statistics. None: when this call alone has states enough
            for it (33,000 of 152,000 ids on a CPU); a program that calls in a loop knows better.
        tokenizer: for both models, in place of those beside the weights.
        teacher_tokenizer: of a served teacher, which is not asked for it; None: the one beside its weights when these
            are on this machine, else it is assumed to be the student's.
        allow_special_mismatch: accept an id whose two strings differ when both tokenizers call it special.
        trust_remote_code: let a model directory run its own code. Off unless you say so.
        length_factors: whose length decides the rotary factors of a model that has several (longrope, dynamic scaling):
            the ``prefix`` that a token is predicted from, as in ``generate``; the ``whole`` rollout, as in a trainer's
            forward; or the longest that the model takes, at every prefix, as in a vLLM ``server``.
        teacher_prompts: for each rollout, in their order, what the teacher reads before the response in place of the
            student's prompt: token ids, or chat messages, which go through the teacher's chat template. The response
            is the same ids for both, so that states stay aligned.
        labels: JSON values to keep with the trace, such as ``run``, ``step``, ``teacher`` and ``states``.
        reuse: whether a fitting trace at ``out`` is used again.
        sequential: load the student, run it, let it go, and only then load the teacher; the student's hidden states
            wait on disk and the numbers are the same. None: when both are read from disk and do not fit together.
        precision: replay prompts in a random order, and stop once no end of the interval of ``overlap_ratio`` (at
            k = 16), or of each metric that a mapping names, lies farther from it than this. The trace says so
            (:attr:`Trace.stopped`), and the same call without it, or with a smaller one, goes on from ``out``.
        progress: called with (states done, states in all); with a served teacher every state counts twice, once told
            and once replayed.

    Returns:
        The trace; rollouts in the order given, skipped ones in its rollout table with the reason.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    settings = ReplaySettings(k, temperature, jsd, dtype, tokenizer, allow_special_mismatch, batch_tokens, chunk)
    settings = replace(settings, length_factors=length_factors, compiled=compiled)
    path = None if out is None else output_path(out)
    wanted = _precision(precision, settings)
    request = TraceRequest(student, teacher, path, settings, labels or {}, precision=wanted)
    place: dict[str, Any] = {"device": device, "device_map": device_map, "trust_remote_code": trust_remote_code}
    how: dict[str, Any] = {"reuse": reuse, "sequential": sequential, "progress": progress}
    (trace,) = _traces([request], rollouts, place, [teacher_prompts], teacher_tokenizer=teacher_tokenizer, **how)
    return trace


def replay_teachers(
    student: Any,
    teachers: Mapping[str, Any],
    rollouts: RolloutsSource,
    out: str | Path | None = None,
    *,
    teacher_prompts: Mapping[str, Sequence[Any]] | None = None,
    labels: Mapping[str, Any] | None = None,
    **options: Unpack[ReplayOptions],
) -> dict[str, Trace]:
    """Run one student once, and several teachers, over the same student-visited states: a trace for each teacher.

    The numbers are those of :func:`replay` with each teacher. One teacher is in memory at a time; the student's last
    hidden states wait on disk. A teacher whose trace in ``out`` still fits is not run again.

    Args:
        teachers: by name, each as for :func:`replay`. The name becomes the label ``teacher`` and the file's name.
        teacher_prompts: by the names of the teachers that read other prompts than the student, as for :func:`replay`.
        out: the directory for the trace files, ``<name>.parquet``; None keeps the traces in memory.
        options: as for :func:`replay`.

    Returns:
        The traces by the names of the teachers, in their order.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if not isinstance(teachers, Mapping):
        raise InputError(f"teachers of type {type(teachers).__name__}: expected a mapping of names to models")
    if not teachers:
        raise InputError("teachers: empty; expected at least one model, by name")
    unknown = [name for name in teacher_prompts or {} if name not in teachers]
    if unknown:
        raise InputError(
            f"teacher_prompts: no teacher is called {unknown[0]!r}; expected some of {', '.join(teachers)}"
        )
    given: dict[str, Any] = dict(options)
    own = ("reuse", "sequential", "progress", "teacher_tokenizer")
    how = {name: given.pop(name) for name in own if name in given}
    place: dict[str, Any] = {
        name: given.pop(name) for name in ("device", "device_map", "trust_remote_code") if name in given
    }
    precision = given.pop("precision", None)
    settings, files = ReplaySettings(**given), file_names(list(teachers))
    wanted = _precision(precision, settings)
    requests = [
        TraceRequest(
            student,
            teacher,
            None if out is None else output_path(out) / f"{files[name]}.parquet",
            settings,
            {**(labels or {}), "teacher": name},
            precision=wanted,
        )
        for name, teacher in teachers.items()
    ]
    prompts = [(teacher_prompts or {}).get(name) for name in teachers]
    return dict(zip(teachers, _traces(requests, rollouts, place, prompts, **how), strict=True))


def _traces(
    requests: Sequence[TraceRequest],
    rollouts: RolloutsSource,
    place: Mapping[str, Any],
    prompts: Sequence[Sequence[Any] | None],
    *,
    reuse: bool = True,
    sequential: bool | None = None,
    progress: Progress | None = None,
    teacher_tokenizer: Any = None,
) -> list[Trace]:
    """The traces of one student against several teachers, with the same options: stored ones, and those that lack.

    Args:
        prompts: for each request what its teacher reads, None where it is what the student reads.
    """
    student, settings = requests[0].student, requests[0].settings
    settings.check()
    given = read_source(rollouts)
    origin = str(Path(rollouts).absolute()) if isinstance(rollouts, (str, Path)) else None
    requests = [replace(one, rollouts_from=origin, reuse=reuse) for one in requests]
    requests = [_ready(*pair, given, teacher_tokenizer) for pair in zip(requests, prompts, strict=True)]
    given = without_padding(given, special_ids_near(student, settings.tokenizer))
    if len(requests) > 1:
        states = len(requests) * states_of(given)
        requests = [replace(one, settings=replace(one.settings, job_states=states)) for one in requests]
    fingerprints = [request.fingerprint(given) for request in requests]
    traces = {n: one.stored(fingerprints[n], given) for n, one in enumerate(requests)}
    lacking = [number for number, trace in traces.items() if trace is None]
    if not lacking:
        return [trace for trace in traces.values() if trace is not None]
    load = {"dtype": settings.dtype, "tokenizer": settings.tokenizer, **place}
    if sequential is None:
        others = [requests[number].teacher for number in lacking if not _same(student, requests[number].teacher)]
        sequential = any(too_large_together([student, one], settings.dtype, **_device(place)) for one in others)
    loaded = load_model(student, **load)
    given = encode_rollouts(given, loaded.tokenizer)
    warn_of_text(given, "rollouts")
    disk = existing_directory(requests[0].path.parent) if requests[0].path is not None else None
    order = requests[lacking[0]].begun(given, fingerprints[lacking[0]]).order
    how: dict[str, Any] = {"alone": sequential, "progress": progress, "order": order}
    first = shared_student(loaded, given, requests, lacking, disk, **how)
    kept = None if sequential else loaded
    gone = sequential and _let_go(student, loaded)
    del loaded  # when it has run alone, nothing holds it any more
    for number in lacking:
        if gone:
            gc.collect()
        request = requests[number]
        served = isinstance(request.teacher, ServedModel)
        # In self-distillation one model stands on both sides.
        itself = kept if _same(student, request.teacher) else None
        teacher = request.teacher if served else itself or load_model(request.teacher, **load)
        traces[number] = request.make(first, teacher, given, fingerprints[number], progress)
        gone = not served and teacher is not itself and _let_go(request.teacher, teacher)
        del teacher
    return [trace for trace in traces.values() if trace is not None]


def _ready(
    request: TraceRequest, prompts: Sequence[Any] | None, rollouts: Sequence[Rollout], tokenizer: Any
) -> TraceRequest:
    """The request with its server asked who it is, when the teacher is one, and with the teacher's prompts as ids."""
    if request.path is not None:
        check_file_writable(request.path)
    teacher = served_model(request.teacher, tokenizer if tokenizer is not None else request.settings.tokenizer)
    if isinstance(teacher, ServedModel):
        request = replace(request, teacher=teacher, settings=settings_for(teacher, request.settings))
    if prompts is None:
        return request
    read = prompts_as_given(request.teacher, request.settings.tokenizer, prompts, rollouts)
    return replace(request, teacher_prompts=read)


def _precision(given: float | Mapping[str, float] | None, settings: ReplaySettings) -> Precision | None:
    """What a program asks for.

    Raises:
        InputError: it names no such metric, or no width.
    """
    if given is None:
        return None
    try:
        widths = parse_widths(given)
    except ValueError as error:
        raise InputError(f"precision: {error}") from None
    if "jsd" in widths and not settings.jsd:
        raise InputError("precision of jsd: it is measured only with jsd=True")
    return Precision(widths, k=METRICS_K)


def _let_go(source: Any, loaded: Any) -> bool:
    """Whether a model that is done with leaves much memory behind: not when it was at hand, and stays so."""
    return isinstance(source, (str, Path, Checkpoint)) and is_large(loaded)


def _same(student: Any, teacher: Any) -> bool:
    """Whether two sources are one model."""
    if isinstance(student, (str, Path)) and isinstance(teacher, (str, Path)):
        return real_path(user_path(str(student))) == real_path(user_path(str(teacher)))
    return student is teacher or (isinstance(student, Checkpoint) and student == teacher)


def prompts_as_given(
    teacher: Any, tokenizer: Any, prompts: Sequence[Any], rollouts: Sequence[Rollout]
) -> TeacherPrompts:
    """What a teacher reads, as a program says it: token ids, or messages for its own template.

    Raises:
        OpdProbeError: as :func:`opd_probe.rollouts.teacher_prompts.given_prompts`.
    """

    def load() -> Any:
        if isinstance(teacher, (LoadedModel, ServedModel)):
            return teacher.tokenizer
        if tokenizer is not None:
            return load_tokenizer(tokenizer, required=True)
        source = resolve_checkpoint(teacher) if isinstance(teacher, (str, Path)) else teacher
        return tokenizer_of(source, None) if isinstance(source, Checkpoint) else None

    return given_prompts(prompts, rollouts, load)


def _device(place: Mapping[str, Any]) -> dict[str, Any]:
    return {name: place.get(name) for name in ("device", "device_map")}


def read_source(rollouts: RolloutsSource) -> list[Rollout]:
    """The rollouts of a file, of dictionaries, or as they are.

    Raises:
        OpdProbeError: they cannot be used.
    """
    if isinstance(rollouts, (str, Path)):
        return read_rollouts(rollouts)
    given: list[Any] = list(rollouts)
    nouns = [rollout for rollout in given if isinstance(rollout, Rollout)]
    if nouns and len(nouns) == len(given):
        return checked_set(((f"rollouts, entry {number}", one) for number, one in enumerate(nouns)), "rollouts")
    if nouns:
        raise InputError("rollouts: Rollout objects and dictionaries in one list; expected all of one kind")
    return rollouts_from_dicts(given)
