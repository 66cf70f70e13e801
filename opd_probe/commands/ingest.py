"""``opd-probe ingest``: what trainers left, as a rollout file or as traces of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd_probe.engine.nemo_rl import Dump, dump_traces, find_dumps
from opd_probe.errors import InputError, warn
from opd_probe.options.naming import file_names
from opd_probe.output import check_writable, make_folder, output_path, rows_file
from opd_probe.progress import Progress
from opd_probe.rollouts.files import prompt_key, write_rollouts
from opd_probe.rollouts.grading import grade_rollout
from opd_probe.rollouts.reading import RolloutSet, read_rollout_set, remarks
from opd_probe.rollouts.sources import source_named
from opd_probe.texts import real_path
from opd_probe.types import Rollout


def ingest(
    paths: Sequence[str],
    out: str,
    progress: Progress,
    *,
    kind: str | None = None,
    score: str | None = None,
    regrade: bool = False,
    step_pattern: str | None = None,
) -> dict[str, Any]:
    """Read rollouts, grade those that have an answer and no score, and write them to ``out``; or write the traces that
    dumps of both models' log-probabilities make to a directory.

    Args:
        kind: what wrote them; None: recognised by their fields.
        score: the field that is the score.
        regrade: grade those with a score, too.
        step_pattern: how the step is read from the name of a file or its folder; None: as those of checkpoints are.

    Returns:
        What was recognised, in JSON types.

    Raises:
        OpdProbeError: bad input, in one line; then nothing is written.
    """
    path = output_path(out)
    if path.suffix not in (".jsonl", ".parquet"):
        dumps = find_dumps(paths) if kind is None else []
        if not dumps:
            raise InputError(
                f"--out {out}: expected the .jsonl or .parquet file to write; a directory is for the traces of "
                "NeMo-RL's statistics (opd_topk_stats_step1.pt), of which none was given"
            )
        return _ingest_dumps(dumps, path, progress)
    path = rows_file(out, paths)
    progress.begin("read")
    found = read_rollout_set(paths, kind, progress.update, besides=path, step_pattern=step_pattern)
    rollouts = found.rollouts if score is None else [_scored(rollout, score) for rollout in found.rollouts]
    rollouts, graded = _graded(rollouts, regrade, progress)
    write_rollouts(path, rollouts)
    for line in remarks(found):
        warn(line)
    return _report(found, rollouts, graded)


def _ingest_dumps(dumps: Sequence[Dump], out: Path, progress: Progress) -> dict[str, Any]:
    """Write a trace for each step that a trainer dumped both models' log-probabilities of."""
    check_writable(out / "traces")
    run = real_path(dumps[0].path).parent.name or "run"
    traces = dump_traces(dumps, run)
    folder = make_folder(out / "traces")
    progress.begin("write")
    for done, trace in enumerate(traces):
        progress.update(done, len(traces))
        step = trace.provenance["labels"]["step"]
        trace.save(folder / f"{file_names([run])[run]}-step-{step}.parquet")
    for line in dict.fromkeys(line for trace in traces for line in trace.warnings):
        warn(f"run {run}: {line}")
    skipped = Counter(row for trace in traces for row in trace.rollouts.column("skipped").to_pylist() if row)
    return {
        "kind": "nemo-rl",
        "files": len(dumps),
        "traces": len(traces),
        "rollouts": sum(trace.rollouts.num_rows for trace in traces) - sum(skipped.values()),
        "states": sum(trace.n_states for trace in traces),
        "k": max(trace.K for trace in traces),
        "steps": [trace.provenance["labels"]["step"] for trace in traces],
        "steps_are": "the trainer's: step N is what it saw at the weights of checkpoint N - 1",
        "skipped": dict(skipped),
    }


def _scored(rollout: Rollout, name: str) -> Rollout:
    value = rollout.extra.get(name)
    if value is not None and not isinstance(value, (bool, int, float)):
        raise InputError(f"--score {name}: is {type(value).__name__} in rollout {rollout.id!r}; expected a number")
    if value is None and name not in rollout.extra:
        held = ", ".join(name for name, value in rollout.extra.items() if isinstance(value, (bool, int, float)))
        raise InputError(f"--score {name}: rollout {rollout.id!r} has no such field; its numbers are {held or 'none'}")
    return replace(rollout, score=None if value is None else float(value))


def _graded(rollouts: Sequence[Rollout], regrade: bool, progress: Progress) -> tuple[list[Rollout], int]:
    """Rollouts with verdicts in place of missing scores, and how many. Ids without text wait for a tokenizer."""
    progress.begin("grade")
    done: list[Rollout] = []
    graded = 0
    for number, rollout in enumerate(rollouts):
        progress.update(number, len(rollouts))
        wanted = rollout.answer is not None and (regrade or rollout.score is None)
        if wanted and rollout.response is not None:
            rollout = replace(rollout, score=float(grade_rollout(rollout, rollout.response)))
            graded += 1
        done.append(rollout)
    return done, graded


def _report(found: RolloutSet, rollouts: Sequence[Rollout], graded: int) -> dict[str, Any]:
    steps = sorted({rollout.step for rollout in rollouts if rollout.step is not None})
    masks = [rollout.response_mask for rollout in rollouts if rollout.response_mask is not None]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    ends = [rollout.finish_reason for rollout in rollouts if rollout.finish_reason is not None]
    return {
        "kind": found.kind,
        "files": len(found.files),
        "rollouts": len(rollouts),
        "prompts": len({prompt_key(rollout) for rollout in rollouts}),
        "steps": steps,
        "steps_are": source_named(found.kind).steps_are or None,
        "without_step": sum(rollout.step is None for rollout in rollouts),
        "token_source": rollouts[0].token_source,
        "tokens": tokens or None,  # of text they are not known yet
        "masked_tokens": sum(len(mask) - sum(mask) for mask in masks) if tokens else None,
        "with_score": sum(rollout.score is not None for rollout in rollouts),
        "with_answer": sum(rollout.answer is not None for rollout in rollouts),
        "graded": graded,
        "with_logprobs": sum(rollout.logprobs is not None for rollout in rollouts),
        "with_teacher_logprobs": sum("teacher_logprobs" in rollout.extra for rollout in rollouts),
        "truncated": ends.count("length") if ends else None,
        "skipped": dict(found.skipped),
    }
