"""Entropies over the full shared vocabulary, and their gap (Eq. 8)."""

from __future__ import annotations

import numpy as np

from opd_probe.metrics.registry import register
from opd_probe.metrics.view import Floats, TopView


@register(
    "student_entropy",
    unit="nats",
    source="§2",
    definition="H(p) over the full shared vocabulary",
    needs=("student_entropy",),
    depends_on_k=False,
)
def student_entropy(view: TopView) -> Floats:
    return view.scalar("student_entropy")


@register(
    "teacher_entropy",
    unit="nats",
    source="§2",
    definition="H(q) over the full shared vocabulary",
    needs=("teacher_entropy",),
    depends_on_k=False,
)
def teacher_entropy(view: TopView) -> Floats:
    return view.scalar("teacher_entropy")


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
