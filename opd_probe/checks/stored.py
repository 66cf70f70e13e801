"""The teacher's log-probabilities that came along in rollouts, as a trainer wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats
from opd_probe.checks.registry import Skip
from opd_probe.types import Rollout

FIELD = "teacher_logprobs"
"""The key in :attr:`Rollout.extra`: one value per response token, null where unknown."""


def values_of(rollout: Rollout) -> Sequence[Any] | None:
    """What a rollout carries under :data:`FIELD`, when it is a list."""
    values = rollout.extra.get(FIELD)
    return values if isinstance(values, (list, tuple)) else None


def lengths_off(evidence: Evidence) -> list[tuple[str, int, int]]:
    """(rollout id, values, response tokens) of rollouts whose stored values do not match their response one to one."""
    found = []
    for rollout in evidence.rollouts:
        values = values_of(rollout)
        if values is not None and len(values) != len(rollout.response_ids):
            found.append((rollout.id, len(values), len(rollout.response_ids)))
    return found


def stored_teacher(evidence: Evidence) -> dict[int, Floats]:
    """By rollout index, one value per response token, in nats; NaN where unknown.

    Raises:
        Skip: no rollout has usable ones.
    """
    stored: dict[int, Floats] = {}
    for index, rollout in enumerate(evidence.rollouts):
        values = values_of(rollout)
        if values is None or len(values) != len(rollout.response_ids):
            continue
        numbers = [np.nan if value is None else value for value in values]
        if all(isinstance(value, (int, float)) for value in numbers):
            stored[index] = np.asarray(numbers, dtype=np.float64)
    if not stored:
        raise Skip(f"no rollout carries the teacher's log-probabilities ({FIELD}), one per response token")
    return stored
