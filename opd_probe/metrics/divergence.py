"""Divergences and rewards (Eq. 2-5). ``reverse`` is KL(student ‖ teacher), ``forward`` KL(teacher ‖ student)."""

from __future__ import annotations

import math

import numpy as np

from opd_probe.metrics.overlap import IDS, STUDENT, TEACHER
from opd_probe.metrics.registry import REAL, register, register_stored
from opd_probe.metrics.view import Bools, Floats, TopView, renormalised_kl


def _untold(view: TopView) -> Bools:
    return view.untold_on_student


register_stored("reverse_kl", unit="nats", source="Eq. 2, 4", definition="KL(p ‖ q) over the full shared vocabulary")
register_stored("forward_kl", unit="nats", source="Eq. 2, 4", definition="KL(q ‖ p) over the full shared vocabulary")
register_stored(
    "jsd",
    unit="nats",
    source="Eq. 4",
    definition="Jensen-Shannon divergence over the full shared vocabulary; null unless the replay was asked for it",
    range=(0.0, math.log(2.0)),
)


@register(
    "sampled_reward",
    unit="nats",
    source="Eq. 3",
    definition="log q(ŷ) − log p(ŷ) of the sampled token; null when it lies outside the shared vocabulary",
    needs=("student_logprob", "teacher_logprob"),
    range=REAL,
    depends_on_k=False,
)
def sampled_reward(view: TopView) -> Floats:
    with np.errstate(invalid="ignore"):
        return view.scalar("teacher_logprob") - view.scalar("student_logprob")


@register(
    "topk_reverse_kl_student",
    unit="nats",
    source="Eq. 5",
    definition="KL(p̄ ‖ q̄), both renormalised on S_p",
    needs=STUDENT,
    trivial_at_one=True,
    selected=_untold,
)
def topk_reverse_kl_student(view: TopView) -> Floats:
    return renormalised_kl(view.student_logprobs, view.teacher_logprobs_on_student)


@register(
    "topk_reverse_kl_teacher",
    unit="nats",
    source="Eq. 5",
    definition="KL(p̄ ‖ q̄), both renormalised on S_q",
    needs=TEACHER,
    trivial_at_one=True,
)
def topk_reverse_kl_teacher(view: TopView) -> Floats:
    return renormalised_kl(view.student_logprobs_on_teacher, view.teacher_logprobs)


@register(
    "topk_reverse_kl_overlap",
    unit="nats",
    source="Eq. 5, §4.2",
    definition="KL(p̄ ‖ q̄), both renormalised on S_p ∩ S_q; null on an empty overlap",
    needs=IDS + STUDENT,
    trivial_at_one=True,
)
def topk_reverse_kl_overlap(view: TopView) -> Floats:
    return view.kl_on_overlap


@register(
    "topk_reverse_kl_non_overlap",
    unit="nats",
    source="Eq. 5, §4.2",
    definition="KL(p̄ ‖ q̄), both renormalised on the symmetric difference S_p △ S_q; null when S_p = S_q",
    needs=IDS + STUDENT + TEACHER,
    selected=_untold,
)
def topk_reverse_kl_non_overlap(view: TopView) -> Floats:
    support = np.concatenate([view.student_only, view.teacher_only], axis=1)
    return renormalised_kl(*view.union_logprobs, support)


@register(
    "topk_reverse_kl_union",
    unit="nats",
    source="Eq. 5",
    definition="KL(p̄ ‖ q̄), both renormalised on S_p ∪ S_q",
    needs=IDS + STUDENT + TEACHER,
    selected=_untold,
)
def topk_reverse_kl_union(view: TopView) -> Floats:
    support = np.concatenate([view.student_listed, view.teacher_only], axis=1)
    return renormalised_kl(*view.union_logprobs, support)
