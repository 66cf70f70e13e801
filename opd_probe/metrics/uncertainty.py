"""Where a token is worth training on: entropy of both models, and entropy and disagreement taken together."""

from __future__ import annotations

import numpy as np

from opd_probe.metrics.overlap import IDS
from opd_probe.metrics.registry import register, register_both
from opd_probe.metrics.signal import share_where
from opd_probe.metrics.view import Floats, TopView

HIGH_ENTROPY = 0.8
"""Entropy (nats) above which a state is one of high entropy; the bound of arXiv 2603.07079."""


@register_both(
    "{side}_high_entropy_share",
    unit="share",
    source="arXiv 2603.07079",
    definition="1 where H({letter}) > 0.8, else 0",
    needs="{side}_entropy",
    depends_on_k=False,
)
def high_entropy_share(view: TopView, side: str) -> Floats:
    entropy = view.scalar(f"{side}_entropy")
    return share_where(entropy > HIGH_ENTROPY, entropy)


@register(
    "soft_or_score",
    unit="share",
    source="arXiv 2604.14084",
    definition="ĥ + δ̂ − ĥ δ̂ with ĥ = H(p) / log V and δ̂ = 1 − exp(−KL(p ‖ q)); δ̂ is our normalisation",
    needs=("student_entropy", "reverse_kl", "log_vocabulary"),
    depends_on_k=False,
)
def soft_or_score(view: TopView) -> Floats:
    """[n] in [0, 1]; 0 only where the student is certain and the teacher agrees. One token in all: ĥ = 0."""
    size = view.scalar("log_vocabulary")
    with np.errstate(invalid="ignore", divide="ignore"):
        uncertain = np.where(size == 0, 0.0, view.scalar("student_entropy") / size)
    apart = 0.0 - np.expm1(-view.scalar("reverse_kl"))
    return uncertain + apart - uncertain * apart


@register(
    "teachability",
    unit="nats",
    source="arXiv 2605.26844",
    definition="KL(p ‖ q) · Σ over S_p of q: disagreement, as far as the teacher's mass lies on the student's top k",
    needs=(*IDS, "reverse_kl", "teacher_logprobs_at_student_top"),
)
def teachability(view: TopView) -> Floats:
    """[n]. The paper's disagreement is a KL; ours is the one that is trained on, over the full shared vocabulary."""
    with np.errstate(invalid="ignore"):  # an infinite KL where the teacher has no mass on the student's top k
        value: Floats = view.scalar("reverse_kl") * np.exp(view.teacher_logprobs_on_student).sum(1)
    return value
