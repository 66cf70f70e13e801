"""One state in JSON types: its numbers, its context, and both models' top lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd_probe.curves.intervals import Floats
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import block_metrics
from opd_probe.metrics.view import TopView
from opd_probe.models.decoding import Decoder
from opd_probe.results.responses import Responses
from opd_probe.results.tables import json_row

QUANTITIES = (
    "reverse_kl", "sampled_reward", "forward_kl", "student_entropy", "teacher_entropy", "entropy_gap", "overlap_ratio",
    "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass", "extreme_advantage_gap",
    "student_token_probability", "teacher_token_probability", "teachability",
)  # fmt: skip
"""Per-state metrics that are shown of a state, the ones looked at first in front."""


def quantities(rows: Mapping[str, Any], k: int) -> dict[str, Floats]:
    """:data:`QUANTITIES` of a block of rows, float64 [n] each."""
    return block_metrics(rows, k, QUANTITIES)


def top_lists(rows: Mapping[str, Any], k: int) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]]]:
    """For each row the student's and the teacher's top k: ``id``, ``own`` and the ``other`` probability, ``shared``.

    Probabilities are true ones; None where unknown. Shared: in both top k.
    """
    ids = [np.asarray(rows[f"{side}_top_ids"])[:, :k] for side in ("student", "teacher")]
    logs = (
        (rows["student_top_logprobs"], rows["teacher_logprobs_at_student_top"]),
        (rows["teacher_top_logprobs"], rows["student_logprobs_at_teacher_top"]),
    )
    view = TopView(rows, k)
    held = ((view.in_overlap, view.student_listed), (view.teacher_in_overlap, view.teacher_listed))
    both = []
    for own, ((own_logs, other_logs), (shared, there)) in enumerate(zip(logs, held, strict=True)):
        p, q = (np.exp(np.asarray(values, dtype=np.float64)[:, :k]) for values in (own_logs, other_logs))
        both.append(
            [
                [
                    {"id": int(i), "own": _known(a), "other": _known(b), "shared": bool(s)}
                    for i, a, b, s, listed in zip(*line, strict=True)
                    if listed and i >= 0  # else behind the end of a list
                ]
                for line in zip(ids[own].tolist(), p.tolist(), q.tolist(), shared.tolist(), there.tolist(), strict=True)
            ]
        )
    return both[0], both[1]


def _known(value: float) -> float | None:
    return None if value != value else float(f"{value:.4g}")


def describe_state(row: Mapping[str, Any], responses: Responses, decoder: Decoder, k: int) -> dict[str, Any]:
    """One row of a trace as a JSON document."""
    rows = {name: np.asarray(value)[None] for name, value in row.items() if name != "extremity"}
    index, position, token = int(row["rollout"]), int(row["position"]), int(row["token_id"])
    before, text, after = responses.context(index, position)
    student, teacher = top_lists(rows, k)
    return {
        "rollout_id": responses.rollout_id(index),
        "prompt_id": responses.table[index]["prompt_id"],
        "position": position,
        "token_id": token,
        "token": decoder.label(token),
        "before": before,
        "text": text,
        "after": after,
        "values": json_row({name: float(values[0]) for name, values in quantities(rows, k).items()}),
        "student_top": _named(student[0], decoder, "p_student", "q_teacher"),
        "teacher_top": _named(teacher[0], decoder, "q_teacher", "p_student"),
    }


def _named(entries: Sequence[Mapping[str, Any]], decoder: Decoder, own: str, other: str) -> list[dict[str, Any]]:
    return [
        {
            "token_id": entry["id"],
            "token": decoder.label(entry["id"]),
            own: entry["own"],
            other: entry["other"],
            "shared": entry["shared"],
        }
        for entry in entries
    ]


def unknown_quantities(values: Mapping[str, Floats]) -> list[str]:
    """Names of quantities that are unknown at every state."""
    return [name for name in QUANTITIES if name in METRICS and not np.isfinite(values[name]).any()]
