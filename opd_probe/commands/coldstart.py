"""``opd-probe coldstart``: a teacher's rollouts as a set for supervised training before distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opd_probe.errors import MissingError, warn
from opd_probe.metrics.context import CORRECT_FROM
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.output import rows_file
from opd_probe.progress import Progress
from opd_probe.rollouts.files import prompt_key
from opd_probe.rollouts.grading import grade_rollout
from opd_probe.rollouts.reading import read_rollout_set, remarks
from opd_probe.rollouts.rows import write_rows
from opd_probe.rollouts.supervised import Layout, choose, examples
from opd_probe.types import Rollout


def coldstart(
    paths: Sequence[str],
    out: str,
    progress: Progress,
    *,
    layout: Layout = "messages",
    correct_only: bool = False,
    per_prompt: int | None = None,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Filter a teacher's rollouts and write those worth imitating (paper §5.1) as TRL's SFTTrainer reads them.

    Args:
        paths: rollout files of any kind that is known, as ``opd-probe rollout --ckpts TEACHER`` writes them.
        out: the ``.jsonl`` or ``.parquet`` file to write.
        correct_only: only responses that are right; those with an answer and no score are graded.
        per_prompt: at most so many of a prompt; None: all.
        tokenizer: for rollouts of ids without text.

    Returns:
        What was read, left out by reason, and written, in JSON types.

    Raises:
        OpdProbeError: bad input, in one line; then nothing is written.
    """
    path = rows_file(out, paths)
    progress.begin("read")
    found = read_rollout_set(paths, None, progress.update, besides=path)
    for line in remarks(found):
        warn(line)
    rollouts = _with_text(found.rollouts, tokenizer)
    if correct_only:
        rollouts = [_graded(rollout) for rollout in rollouts]
    chosen = choose(rollouts, right_from=CORRECT_FROM if correct_only else None, per_prompt=per_prompt)
    if not chosen.rollouts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in chosen.left_out.items())
        raise MissingError(f"{' '.join(paths)}: none of {len(rollouts)} rollouts is left ({reasons})")
    unknown = sum(rollout.finish_reason is None for rollout in chosen.rollouts)
    if unknown:
        warn(
            f"of {unknown} of {len(chosen.rollouts)} rollouts it is not known whether they were cut off; they are kept"
        )
    rows = examples(chosen.rollouts, layout)
    write_rows(path, rows, list(rows[0]))
    return {
        "rollouts": len(rollouts),
        "prompts": len({prompt_key(rollout) for rollout in rollouts}),
        "left_out": dict(chosen.left_out),
        "examples": len(rows),
        "example_prompts": len({prompt_key(rollout) for rollout in chosen.rollouts}),
        "fields": list(rows[0]),
        "out": str(path),
    }


def _with_text(rollouts: Sequence[Rollout], tokenizer: str | None) -> list[Rollout]:
    """Rollouts with their response, and their prompt where it is no chat, as text."""
    if tokenizer is None:
        return list(rollouts)
    known: Any = load_tokenizer(tokenizer, required=True)

    def decoded(ids: Sequence[int], *, special: bool) -> str:
        return str(known.decode(list(ids), skip_special_tokens=not special))

    return [
        replace(
            rollout,
            response=decoded(rollout.response_ids, special=False) if rollout.response is None else rollout.response,
            prompt=decoded(rollout.prompt_ids, special=True) if rollout.prompt is None else rollout.prompt,
        )
        for rollout in rollouts
    ]


def _graded(rollout: Rollout) -> Rollout:
    if rollout.score is not None or rollout.answer is None or rollout.response is None:
        return rollout
    return replace(rollout, score=float(grade_rollout(rollout, rollout.response)))
