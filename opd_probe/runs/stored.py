"""Measured triples: a trace with the names under which rows and figures show it; and finding stored ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd_probe.curves.groups import groups
from opd_probe.curves.sampling import sampling_label, sampling_remark
from opd_probe.errors import InputError, MissingError, TraceError, warn
from opd_probe.options.naming import user_path
from opd_probe.options.settings import Options, Settings, settle
from opd_probe.plain import visible
from opd_probe.texts import real_path
from opd_probe.trace import Trace, read_trace


@dataclass(frozen=True, slots=True)
class Measured:
    """One (run, step, teacher) with its trace, and how it is to be summarised."""

    run: str
    step: int | None
    teacher: str
    states: str
    trace: Trace
    settings: Settings
    by: str | None = None
    group: str | None = None

    @property
    def key(self) -> dict[str, Any]:
        """The columns that name a row; of a part of a trace also the field and its value there."""
        names = {"run": self.run, "step": self.step, "teacher": self.teacher}
        return names if self.by is None else {**names, "by": self.by, "group": self.group}

    @property
    def token_source(self) -> str:
        """See :func:`token_source_of`."""
        return token_source_of(self.trace)

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that say what a row's states are: whose, of what ids, and how they were sampled; which model is
        quantised, where one is; and of a replay that stopped, where."""
        quantised = quantised_models(self.trace)
        return {
            "states": self.states,
            "token_source": self.token_source,
            "sampling": sampling_label(self.trace),
            **({"quantised": quantised} if quantised else {}),
            **stopped_columns(self.trace),
        }


def by_group(measured: Sequence[Measured], field: str | None) -> list[Measured]:
    """The parts of each trace by a field (:func:`opd_probe.groups`); None: the traces themselves.

    Raises:
        InputError: a trace without such a field.
    """
    if field is None:
        return list(measured)
    return [
        replace(one, trace=part, by=field, group=name)
        for one in measured
        for name, part in groups(one.trace, field).items()
    ]


def stopped_columns(trace: Trace) -> dict[str, Any]:
    """Of a replay that stopped: where, in words (``"at 40 of 128 prompts, 5,120 of 16,210 states"``), how much there
    was, and the level at each look of the intervals beside it. Nothing of a whole trace."""
    said = trace.stopped
    if said is None:
        return {}
    prompts, states = (f"{said[name]:,} of {said[f'of_{name}']:,} {name}" for name in ("prompts", "states"))
    return {
        "stopped": f"at {prompts}, {states}",
        "n_prompts_in_all": said["of_prompts"],
        "n_states_in_all": said["of_states"],
        "interval_level": said["level"],
    }


def token_source_of(trace: Trace) -> str:
    """Whether a trace's ids are what was sampled: a :data:`~opd_probe.types.TokenSource`, or ``"mixed"``."""
    found = set(trace.rollouts.column("token_source").to_pylist()) - {None}
    return str(found.pop()) if len(found) == 1 else "mixed" if found else "sampled_ids"


def warn_of(trace: Trace) -> None:
    """Say what belongs to a trace and is said whenever it is used."""
    labels = trace.provenance.get("labels", {})
    where = f"run {labels['run']}, step {labels.get('step')}: " if "run" in labels else ""
    for text in trace.warnings:
        warn(f"{where}{text}")


def quantised_models(trace: Trace) -> str:
    """The models of a trace that are quantised, in words (``"4-bit teacher"``); "" where none is."""
    found = []
    for side in ("student", "teacher"):
        stated = (trace.provenance.get(side) or {}).get("quantisation")
        if isinstance(stated, dict):
            found.append(f"{stated['bits']}-bit {side}" if stated.get("bits") else f"quantised {side}")
    return ", ".join(found)


def warn_of_states(measured: Sequence[Measured]) -> None:
    """Say when traces of sampled ids and of text that was tokenised again stand side by side, and when responses were
    sampled otherwise than they are scored."""
    remark = sampling_remark([(_name(one), sampling_label(one.trace)) for one in measured])
    if remark is not None:
        warn(remark)
    text = [one for one in measured if one.token_source != "sampled_ids"]
    if text and len(text) < len(measured):
        names = ", ".join(dict.fromkeys(one.run for one in text))
        warn(
            f"{len(text)} of {len(measured)} traces are of re-tokenised text (of {names}), the others of sampled ids; "
            "they stand side by side, but a difference between them may come from that alone"
        )
    _warn_of_stops(measured)


def _warn_of_stops(measured: Sequence[Measured]) -> None:
    """Say when traces of replays that stopped stand beside whole ones, or beside others that stopped elsewhere."""
    held = {None if one.trace.stopped is None else one.trace.stopped["prompts"] for one in measured}
    stopped = [one for one in measured if one.trace.stopped is not None]
    if len(held) > 1:
        names = ", ".join(dict.fromkeys(one.run for one in stopped))
        warn(
            f"{len(stopped)} of {len(measured)} traces (of {names}) are of replays that stopped, not all after the "
            "same prompts: their intervals are wider, so as to be valid wherever they stop; opd-probe compare takes "
            "the prompts that both have, and the command without --precision makes them whole"
        )


def _name(measured: Measured) -> str:
    return measured.run if measured.step is None else f"{measured.run} step {measured.step}"


def warn_of_prompts(measured: Sequence[Measured]) -> None:
    """Say when traces of one run have other prompts of one name: of another length."""
    for run in dict.fromkeys(one.run for one in measured):
        lengths: dict[str, set[int]] = defaultdict(set)
        for one in measured:
            if one.run == run:
                names, counts = (one.trace.rollouts.column(c).to_pylist() for c in ("prompt_id", "prompt_length"))
                for name, count in zip(names, counts, strict=True):
                    lengths[name].add(count)
        differing = [name for name, found in lengths.items() if len(found) > 1]
        if differing:
            warn(
                f"run {run}: {len(differing)} of {len(lengths)} prompts differ in length between its traces (the first "
                f"is {differing[0]!r}), as with another chat template or tokenizer; its curve joins answers to "
                "different prompts"
            )


def find_traces(arguments: Sequence[str], given: Options, *, what: str = "--traces") -> list[Measured]:
    """Open the traces that ``what`` (an option or argument) names: files, or directories with traces somewhere below.

    Run, step and teacher are what the replay recorded. A directory that ``--out`` filled is searched below
    its ``traces``. Other Parquet files in a directory are skipped with a warning.

    Raises:
        MissingError: no such path.
        TraceError: a trace that cannot be read, e.g. of an unknown version.
        InputError: no trace at all, or two traces of one run, step and teacher.
    """
    settings = settle(given, None, where=what)
    found: dict[Path, Measured] = {}
    for argument in arguments:
        path = user_path(argument)
        if not path.exists():
            raise MissingError(f"{what} {argument}: no such path; expected a trace or a directory with traces")
        if path.is_file():
            found.setdefault(real_path(path), measured_of(read_trace(path), path, settings))
            continue
        within = path / "traces" if (path / "traces").is_dir() else path
        for file in sorted(within.rglob("*.parquet")):
            if file.name.startswith(".") or real_path(file) in found:
                continue
            trace = _trace_or_none(file)
            if trace is not None:
                found[real_path(file)] = measured_of(trace, file, settings)
    if not found:
        raise InputError(
            f"{what} {' '.join(arguments)}: no trace in it; make traces with opd-probe overlap --ckpts, "
            "which stores them under its --out"
        )
    _refuse_twins(list(found.items()))
    for measured in found.values():
        warn_of(measured.trace)
    return list(found.values())


def find_trace(argument: str, given: Options, *, what: str) -> Measured:
    """The one trace that ``what`` names: a file, or a directory that holds one alone.

    Raises:
        InputError: several; and as :func:`find_traces`.
    """
    found = find_traces([argument], given, what=what)
    if len(found) > 1:
        paths = ", ".join(str(one.trace.path) for one in found[:4])
        more = " …" * (len(found) > 4)
        raise InputError(f"{what} {argument}: holds {len(found)} traces; give one of {paths}{more}")
    return found[0]


def _trace_or_none(path: Path) -> Trace | None:
    """A trace, or None for a Parquet file that is something else."""
    try:
        return read_trace(path)
    except TraceError as error:
        if "not one of opd-probe's" not in str(error):
            raise
        warn(f"skipped {path}: a Parquet file, but not a trace")
        return None


def measured_of(trace: Trace, path: Path, settings: Settings) -> Measured:
    """A stored trace under the names that its replay recorded, or its place."""
    labels = trace.provenance.get("labels", {})
    student, teacher = trace.provenance.get("student", {}), trace.provenance.get("teacher", {})
    return Measured(
        run=visible(str(labels.get("run") or path.parent.name)),
        step=labels.get("step", student.get("step")),
        teacher=visible(str(labels.get("teacher") or Path(str(teacher.get("path", "unknown"))).name)),
        states=str(labels.get("states", "unknown")),
        trace=trace,
        settings=settings,
    )


def _refuse_twins(found: Sequence[tuple[Path, Measured]]) -> None:
    seen: dict[tuple[Any, ...], Path] = {}
    for path, measured in found:
        key = tuple(measured.key.values())
        if key in seen:
            raise InputError(
                f"traces {seen[key]} and {path} are both of run {measured.run}, step {measured.step}, "
                f"teacher {measured.teacher}; leave one of them out"
            )
        seen[key] = path
