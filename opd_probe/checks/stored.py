"""The teacher's log-probabilities that came along in rollouts, as a trainer wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats, Skip

FIELD = "teacher_logprobs"
"""The key in :attr:`Rollout.extra`: one value per response token, null where unknown."""


def numbers(values: Any, length: int) -> Floats | None:
    """A list of ``length`` numbers, NaN for null; None for anything else."""
    if not isinstance(values, (list, tuple)) or len(values) != length:
        return None
    filled = [np.nan if value is None else value for value in values]
    if not all(isinstance(value, (int, float)) for value in filled):
        return None
    return np.asarray(filled, dtype=np.float64)


def lengths_off(evidence: Evidence) -> list[tuple[str, int, int]]:
    """(rollout id, values, response tokens) of rollouts whose stored values do not match their response one to one."""
    found = []
    for rollout in evidence.rollouts:
        values = rollout.extra.get(FIELD)
        if isinstance(values, (list, tuple)) and len(values) != len(rollout.response_ids):
            found.append((rollout.id, len(values), len(rollout.response_ids)))
    return found


def stored_teacher(evidence: Evidence) -> dict[int, Floats]:
    """By rollout index, one value per response token, in nats; NaN where unknown.

    Raises:
        Skip: no rollout has usable ones.
    """
    stored: dict[int, Floats] = {}
    for index, rollout in enumerate(evidence.rollouts):
        values = numbers(rollout.extra.get(FIELD), len(rollout.response_ids))
        if values is not None:
            stored[index] = values
    if not stored:
        raise Skip(f"no rollout carries the teacher's log-probabilities ({FIELD}), one per response token")
    return stored
