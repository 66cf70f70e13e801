"""Overlap sets, their mass and their advantage (Eq. 6, 7, 9, 10, Fig. 19)."""

from __future__ import annotations

import math

import numpy as np

from opd_probe.metrics.registry import register
from opd_probe.metrics.view import Floats, TopView

IDS = ("student_top_ids", "student_top_logprobs", "teacher_top_ids", "teacher_top_logprobs")
"""What says which tokens are in the lists: an id of probability 0 is in none."""
STUDENT = ("student_top_logprobs", "teacher_logprobs_at_student_top")
TEACHER = ("teacher_top_logprobs", "student_logprobs_at_teacher_top")


def _mass_on_overlap(view: TopView, probabilities: Floats) -> Floats:
    total: Floats = np.where(view.in_overlap, probabilities, 0.0).sum(1)
    return view.where_told(total)


@register("overlap_ratio", unit="share", source="Eq. 6", definition="|S_p ∩ S_q| / k", needs=IDS)
def overlap_ratio(view: TopView) -> Floats:
    return view.overlap_size / view.k


@register(
    "overlap_advantage",
    unit="nats",
    source="Eq. 7",
    definition="mean over the overlap O of p̄ (log q̄ − log p̄), both renormalised on O: −KL(p̄ ‖ q̄) / |O|",
    needs=IDS + STUDENT,
    range=(-math.inf, 0.0),
    trivial_at_one=True,
)
def overlap_advantage(view: TopView) -> Floats:
    size = np.where(view.overlap_size > 0, view.overlap_size, np.nan)
    return 0.0 - view.kl_on_overlap / size


@register(
    "overlap_advantage_beyond_one",
    unit="nats",
    source="Eq. 7",
    definition="the same where |O| ≥ 2; null on an overlap of one token, where Eq. 7 is 0 whatever the models say",
    needs=IDS + STUDENT,
    range=(-math.inf, 0.0),
)
def overlap_advantage_beyond_one(view: TopView) -> Floats:
    return np.where(view.overlap_size > 1, overlap_advantage(view), np.nan)


@register(
    "student_overlap_mass",
    unit="probability",
    source="Eq. 9",
    definition="sum of p over S_p ∩ S_q, not renormalised; 0 on an empty overlap",
    needs=IDS,
)
def student_overlap_mass(view: TopView) -> Floats:
    return _mass_on_overlap(view, view.student_probabilities)


@register(
    "teacher_overlap_mass",
    unit="probability",
    source="Eq. 10",
    definition="sum of q over S_p ∩ S_q, not renormalised; 0 on an empty overlap",
    needs=(*IDS, "teacher_logprobs_at_student_top"),
)
def teacher_overlap_mass(view: TopView) -> Floats:
    return _mass_on_overlap(view, view.teacher_probabilities_on_student)


@register(
    "extreme_advantage_gap",
    unit="probability",
    source="Fig. 19",
    definition="p(v*) − q(v*) at the overlap token v* with the largest |p̄ (log q̄ − log p̄)|; ties to the lower id",
    needs=IDS + STUDENT,
    range=(-1.0, 1.0),
)
def extreme_advantage_gap(view: TopView) -> Floats:
    log_p, log_q, overlap = view.student_logprobs, view.teacher_logprobs_on_student, view.in_overlap
    shift = view.overlap_log_partitions
    with np.errstate(invalid="ignore"):
        size = np.exp(log_p - shift[0]) * np.abs((log_q - shift[1]) - (log_p - shift[0]))
    size[np.isneginf(log_p)] = 0.0  # 0 log 0 = 0
    # NaN partitions: the overlap is empty, a value on it is unknown, or one side has no mass there.
    undefined = np.isnan(shift[0] + shift[1])[:, 0]
    size = np.where(overlap, size, -1.0)
    largest = size == size.max(1, keepdims=True)
    ids = np.where(largest, view.block["student_top_ids"][:, : view.k].astype(np.int64), np.iinfo(np.int64).max)
    at = np.argmin(ids, axis=1)[:, None]
    gap = np.exp(np.take_along_axis(log_p, at, 1)) - np.exp(np.take_along_axis(log_q, at, 1))
    return view.where_told(np.where(undefined, np.nan, gap[:, 0]))
