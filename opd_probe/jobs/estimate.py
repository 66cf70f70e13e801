"""``--dry-run``: states, bytes and time, from files and one short matrix product. No model is loaded."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd_probe.jobs.files import Files, matched, tokenizer_of
from opd_probe.jobs.kept import reading_of
from opd_probe.jobs.plan import Plan, RunPlan, Teacher
from opd_probe.jobs.prompting import Prompter
from opd_probe.jobs.rendering import student_tokenizer
from opd_probe.models.checkpoints import format_of, headers_of, resolve_checkpoint
from opd_probe.models.served.model import ServedModel
from opd_probe.options.settings import Settings
from opd_probe.rollouts.prompts import encode_prompts
from opd_probe.rollouts.selection import count_states
from opd_probe.types import Checkpoint

LISTS_PER_STATE = 6
SCALARS_PER_STATE = 13
BYTES_PER_VALUE = 4
"""Six lists of K and about thirteen numbers; what compression saves is not counted."""

EFFICIENCY = 0.5
"""Share of a large matrix product's throughput that a small or medium model reaches."""

_CALIBRATION_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one checkpoint.

    Attributes:
        states: rows of one trace.
        tokens: tokens that the student reads, prompts included.
        responses: those among them that a teacher reads too, whatever its prompts are.
        sampled: tokens that the student would read and sample before.
        states_are: what the numbers are: ``exact``; ``about`` where responses are taken to be as long as those that
            the output holds of the run; ``at most`` where nothing has been sampled yet.
    """

    states: int
    tokens: int
    responses: int
    sampled: int = 0
    states_are: Literal["exact", "about", "at most"] = "exact"


def estimate(plan: Plan) -> list[dict[str, Any]]:
    """What a plan would take were nothing stored yet: a row per run, checkpoint and teacher, and a total.

    ``states`` are exact for rollouts, and for prompts as many as stored samples of the run let expect or an upper
    bound, as ``states_are`` says; ``bytes`` are
    those of traces before compression; ``seconds`` come from parameter and token counts and a measured
    throughput, and are None where a model is not on this machine. A teacher that several checkpoints share counts with
    the first.

    Raises:
        OpdProbeError: a file of rollouts or prompts that cannot be used.
    """
    files, prompter = matched(plan.runs), Prompter()
    files.check()
    prompter.check(files.plans, files)
    rows: list[dict[str, Any]] = []
    known: set[Hashable | None] = set()
    for run in files.plans:
        speed = throughput(run.settings)
        lengths = sampled_length(plan.out / "rollouts" / run.folder)
        for checkpoint in run.run.checkpoints:
            work = _work(run, checkpoint, files, lengths)
            student = parameters_of(checkpoint)
            for number, teacher in enumerate(run.teachers):
                first = number == 0  # all teachers score the same samples, and the student runs once for them
                read = _read_by(teacher, run, checkpoint, files, prompter, work)
                sizes = student, parameters_of(teacher.checkpoint)
                reading = reading_of(run, checkpoint, teacher, files)
                again = reading is not None and reading in known
                known.add(reading)
                rows.append(
                    {
                        "run": run.run.name,
                        "step": checkpoint.step,
                        "teacher": teacher.name,
                        "states": work.states,
                        "states_are": "at most" if run.settings.precision is not None else work.states_are,
                        "tokens": read,
                        "bytes": trace_bytes(work.states, run.settings.trace_k),
                        "seconds": seconds(work, 0 if again else read, *sizes, speed, first=first),
                    }
                )
    return [*rows, _total(rows)]


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    times = [row["seconds"] for row in rows]
    kinds = {row["states_are"] for row in rows}
    return {
        "run": "(total)",
        "step": None,
        "teacher": None,
        "states": sum(row["states"] for row in rows),
        "states_are": next(kind for kind in ("at most", "about", "exact") if kind in kinds or kind == "exact"),
        "tokens": sum(row["tokens"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "seconds": None if None in times else sum(times),
    }


def _work(run: RunPlan, checkpoint: Checkpoint, files: Files, length: float | None) -> Work:
    if run.source.kind == "prompts":
        settings = run.settings
        tokenizer = student_tokenizer(tokenizer_of(checkpoint, run.tokenizer), settings)
        prompts = encode_prompts(files.prompts(run), tokenizer)
        each = settings.max_new_tokens if length is None else min(length, settings.max_new_tokens)
        sampled = round(len(prompts) * settings.num_rollouts * each)
        read = sum(len(prompt.ids or ()) for prompt in prompts) * settings.num_rollouts
        states = min(sampled, round((settings.max_states or sampled) + each) - 1) if settings.max_states else sampled
        return Work(states, read + states, states, read + sampled, "at most" if length is None else "about")
    rollouts, _ = files.replayed(run, checkpoint)
    tokens = sum(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    responses = sum(len(rollout.response_ids) for rollout in rollouts)
    return Work(sum(count_states(rollout) for rollout in rollouts), tokens, responses)


def sampled_length(directory: Path) -> float | None:
    """The mean length of the responses that were sampled of a run, in tokens; None where none are stored."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = count = 0
    for path in sorted(directory.glob("*.parquet")):
        try:
            lengths = pc.list_value_length(pq.read_table(path, columns=["response_ids"]).column(0))
        except (OSError, ValueError, IndexError):  # of another kind, or not whole: it is looked at when it is used
            continue
        total, count = total + (pc.sum(lengths).as_py() or 0), count + len(lengths)
    return total / count if count else None


def _read_by(
    teacher: Teacher, run: RunPlan, checkpoint: Checkpoint, files: Files, prompter: Prompter, work: Work
) -> int:
    """Tokens that a teacher reads, its own prompts included."""
    if teacher.prompt is None:
        return work.tokens
    if run.source.kind == "prompts":
        lengths = prompter.lengths(run, checkpoint, teacher, files.prompts(run)) or []
        return work.responses + sum(lengths) * run.settings.num_rollouts
    made = prompter.read(run, checkpoint, teacher, files.replayed(run, checkpoint)[0])
    return work.responses + sum(map(len, made.ids if made else ()))


def trace_bytes(states: int, depth: int) -> int:
    """Bytes on disk of a trace, uncompressed."""
    return states * BYTES_PER_VALUE * (LISTS_PER_STATE * depth + SCALARS_PER_STATE)


def parameters_of(checkpoint: Checkpoint | ServedModel) -> int | None:
    """The number of parameters, from the headers of its files; None for a model that is not on this machine.

    Raises:
        InputError: a file that is not whole.
    """
    if isinstance(checkpoint, ServedModel) or checkpoint.format == "hub":
        return None
    own = sum(header.values for header in headers_of(checkpoint).values())
    if checkpoint.base is None or not format_of(checkpoint).adapter(Path(checkpoint.path)):
        return own
    if not Path(checkpoint.base).is_dir():
        return None
    base = parameters_of(resolve_checkpoint(checkpoint.base))
    return None if base is None else own + base


def throughput(settings: Settings, size: int = 1024) -> float:
    """Floating-point operations per second that a matrix product reaches on the device."""
    import torch

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, settings.dtype or "float32")
    one = torch.randn(size, size, device=device).to(dtype)
    _ = (one @ one).sum().item()  # reading a value waits for the device
    rounds, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < _CALIBRATION_SECONDS:
        _ = (one @ one)[0, 0].item()
        rounds += 1
    return 2.0 * size**3 * rounds / spent


def seconds(
    work: Work, read: int, student: int | None, teacher: int | None, speed: float, *, first: bool
) -> float | None:
    """Seconds for one checkpoint and one teacher; None when a model's size is unknown.

    Two operations per parameter and token; sampling reads the student once more. The student's work counts with the
    ``first`` teacher.

    Args:
        read: tokens that the teacher reads.
        student, teacher: their parameters.
    """
    if student is None or teacher is None:
        return None
    operations = read * teacher + ((work.tokens + work.sampled) * student if first else 0)
    return 2.0 * operations / (speed * EFFICIENCY)
