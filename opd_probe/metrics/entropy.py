"""Entropies over the full shared vocabulary, and their gap (Eq. 8)."""

from __future__ import annotations

import numpy as np

from opd_probe.metrics.registry import SIDES, register, register_stored
from opd_probe.metrics.view import Floats, TopView

for _side, _letter in SIDES.items():
    register_stored(
        f"{_side}_entropy",
        unit="nats",
        source="§2",
        definition=f"H({_letter}) over the full shared vocabulary",
    )


@register(
    "entropy_gap",
    unit="nats",
    source="Eq. 8",
    definition="|H(q) − H(p)|; the mean of absolute values, not the absolute value of the means",
    needs=("student_entropy", "teacher_entropy"),
    depends_on_k=False,
)
def entropy_gap(view: TopView) -> Floats:
    return np.abs(view.scalar("teacher_entropy") - view.scalar("student_entropy"))
