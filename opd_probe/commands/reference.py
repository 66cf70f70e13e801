"""What quantising a teacher cost: the teacher and the model that it was made of, at the same student-visited states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from opd_probe.curves import summarize
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.jobs.plan import RunPlan, Teacher
from opd_probe.jobs.replay import replay
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.served.model import ServedModel
from opd_probe.output import check_writable
from opd_probe.plots.reference import plot_reference
from opd_probe.results.files import save_figure, write_csv
from opd_probe.types import Rollout

if TYPE_CHECKING:
    from opd_probe.engine.replay import Progress
    from opd_probe.rollouts.teacher_prompts import TeacherPrompts
    from opd_probe.trace import Trace

ENOUGH = 0.95
"""Share of states at which both have the same most probable token, below which the check warns."""


@dataclass(frozen=True, slots=True)
class Cost:
    """How far a model is from its reference.

    Attributes:
        table: one row per quantity, with its 95 % interval over prompts; as :func:`opd_probe.plot_reference` takes it.
        row: the line of the doctor.
    """

    table: pd.DataFrame
    row: dict[str, Any]


def measure_cost(trace: Trace, k: int, *, seed: int = 0) -> Cost:
    """From a trace in which the quantised model is the student and its reference the teacher."""
    lists = summarize(trace, k, seed=seed)
    with warnings.catch_warnings():  # of lists of one token the overlap alone is asked for
        warnings.simplefilter("ignore", OpdProbeWarning)
        first = summarize(trace, 1, seed=seed)
    wanted = (
        ("KL(model ‖ reference)", "nats", lists, "reverse_kl"),
        ("KL(reference ‖ model)", "nats", lists, "forward_kl"),
        (f"Overlap of the top {int(lists['k'])}", "share", lists, "overlap_ratio"),
        ("Same most probable token", "share", first, "overlap_ratio"),
    )
    rows = [
        {
            "quantity": words,
            "unit": unit,
            **{f"value{end}": row[f"{name}{end}"] for end in ("", "_lo", "_hi")},
            "n_prompts": row["n_prompts"],
            "n_states": row["n_states"],
        }
        for words, unit, row, name in wanted
    ]
    table = pd.DataFrame(rows)
    parts = [f"{row['quantity']} {row['value']:.4g} [{row['value_lo']:.4g}, {row['value_hi']:.4g}]" for row in rows]
    enough = bool(rows[-1]["value"] >= ENOUGH)
    return Cost(
        table,
        {
            "check": "reference",
            "status": "ok" if enough else "warn",
            "figure": f"{'; '.join(parts)}; {rows[0]['n_states']} states",
            "advice": None
            if enough
            else "the teacher often names another token than the model that it was made of; take more bits, or the "
            "reference itself on --device-map auto",
            "values": {
                f"{name}_{end}" if end else name: float(row[f"{source}{'_' + end if end else ''}"])
                for name, row, source in (
                    ("reverse_kl", lists, "reverse_kl"),
                    ("forward_kl", lists, "forward_kl"),
                    ("overlap_ratio", lists, "overlap_ratio"),
                    ("top_1_agreement", first, "overlap_ratio"),
                )
                for end in ("", "lo", "hi")
            },
        },
    )


def check_reference(
    plan: RunPlan,
    teacher: Teacher,
    reference: str,
    rollouts: Sequence[Rollout],
    prompts: TeacherPrompts | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Replay the rollouts through a teacher and its reference; ``reference-<teacher>.csv`` and a figure beside it.

    Args:
        prompts: what the teacher reads before the responses, and so its reference, where that is not the student's.

    Raises:
        OpdProbeError: a served teacher, a reference that cannot be had, or a place that cannot be written to.
    """
    if isinstance(teacher.checkpoint, ServedModel):
        raise InputError("--reference: the teacher is served; name its weights by --teacher")
    check_writable(out)
    settings = plan.settings
    if prompts is not None:
        rollouts = [replace(one, prompt_ids=tuple(ids)) for one, ids in zip(rollouts, prompts.ids, strict=True)]
    trace = replay(
        teacher.checkpoint,
        resolve_checkpoint(reference),
        rollouts,
        k=settings.k,
        temperature=settings.temperature,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        batch_tokens=settings.batch_tokens,
        allow_special_mismatch=settings.allow_special_mismatch,
        progress=progress,
    )
    cost = measure_cost(trace, settings.k, seed=settings.seed)
    stated = (trace.provenance["student"] or {}).get("quantisation") or {}
    bits = f", {stated['bits']}-bit" if stated.get("bits") else ""
    figure = plot_reference(cost.table, model=f"{teacher.name}{bits}", reference=Path(reference).name)
    name = f"reference-{teacher.name}".replace("/", "--")
    write_csv(cost.table, out / f"{name}.csv")
    save_figure(figure, out / name)
    return cost.row
