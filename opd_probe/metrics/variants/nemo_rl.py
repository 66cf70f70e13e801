"""What NeMo-RL logs under ``on_policy_distillation/topk_stats/``.

Read in NVIDIA-NeMo/RL (September 2026), ``nemo_rl/algorithms/opd_diagnostics.py``, which came with its pull request
4011.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opd_probe.metrics.variants.variant import Parts, Quantity, Variant, per_state, product
from opd_probe.metrics.view import Bools, Floats, TopView

_PREFIX = "on_policy_distillation/topk_stats/"
_SMALLEST = 1e-12
"""Below it the peer takes a mass for none, and the logarithm of this in place of a smaller one's."""

_MEANS = (
    ("mean_jaccard", "share"), ("mean_weighted_jaccard", "share"), ("mean_probability_overlap", "probability"),
    ("teacher_mass_on_student_topk", "probability"), ("student_mass_on_teacher_topk", "probability"),
    ("in_student_topk_correction_fraction", "share"), ("top1_agreement_rate", "share"),
    ("realized_in_teacher_topk_rate", "share"), ("realized_in_student_topk_rate", "share"),
)  # fmt: skip
_SPREADS = (
    *((f"{side}_{name}", unit) for side in ("student", "teacher") for name, unit in (
        ("topk_head_prob_mass", "probability"), ("ex_topk_tail_prob_mass", "probability"),
        ("topk_head_entropy", "nats"), ("ex_topk_tail_entropy_bucket", "nats"),
        ("topk_plus_tail_entropy_bucket", "nats"))),
    ("student_topk_mass_in_teacher_topk", "probability"), ("teacher_topk_mass_in_student_topk", "probability"),
    ("student_to_teacher_topk_intersection_cross_entropy", "nats"),
    ("teacher_to_student_topk_intersection_cross_entropy", "nats"),
    ("student_to_teacher_topk_intersection_residual_cross_entropy_bucket", "nats"),
    ("teacher_to_student_topk_intersection_residual_cross_entropy_bucket", "nats"),
)  # fmt: skip
_HEADLINES = (
    "mean_jaccard", "mean_probability_overlap", "top1_agreement_rate", "teacher_mass_on_student_topk",
    "student_mass_on_teacher_topk", "student_topk_mass_in_teacher_topk", "teacher_topk_mass_in_student_topk",
    "student_topk_plus_tail_entropy_bucket", "teacher_topk_plus_tail_entropy_bucket",
)  # fmt: skip


def nemo_rl() -> Variant:
    """NeMo-RL's comparison of two top-k lists, S_p of the student and S_q of the teacher, O being what they share.

    With each model's probabilities *renormalised on its own list*, p̂ and q̂, and 0 off it:

    - ``mean_jaccard``: |O| / |S_p ∪ S_q|, where Eq. 6 is |O| / k.
    - ``mean_probability_overlap``: Σ min(p̂, q̂); ``mean_weighted_jaccard``: that over Σ max(p̂, q̂).
    - ``teacher_mass_on_student_topk``: Σ_O q̂; ``student_mass_on_teacher_topk``: Σ_O p̂.
    - ``in_student_topk_correction_fraction``: of Σ max(q̂ − p̂, 0) the share on S_p; undefined where q̂ = p̂.
    - ``top1_agreement_rate``; ``realized_in_…_topk_rate``: how often the list has the sampled token.

    With true probabilities p and q, each ``_mean``, ``_min`` and ``_max``:

    - ``…_topk_head_prob_mass``: a list's mass, ``…_ex_topk_tail_prob_mass`` the rest r.
    - ``…_topk_head_entropy``: −Σ p log p on the list; ``…_tail_entropy_bucket``: −r log r, as if the rest were one
      token; ``…_plus_tail_entropy_bucket``: both.
    - ``student_topk_mass_in_teacher_topk``: Σ_O p (Eq. 9); ``teacher_topk_mass_in_student_topk``: Σ_O q (Eq. 10).
    - ``student_to_teacher_topk_intersection_cross_entropy``: −Σ_O p log q, and with ``_residual_…_bucket`` also
      −(1 − Σ_O p) log(1 − Σ_O q); ``teacher_to_student_…`` with p and q in each other's place.

    States of which one list is shorter than k do not count.
    """
    quantities = [Quantity(f"{_PREFIX}{name}", unit, name in _HEADLINES) for name, unit in _MEANS]
    for name, unit in _SPREADS:
        quantities.append(Quantity(f"{_PREFIX}{name}_mean", unit, name in _HEADLINES))
        quantities += [Quantity(f"{_PREFIX}{name}_{end}", unit, reduce=end) for end in ("min", "max")]
    return Variant("nemo-rl", "NVIDIA-NeMo/RL, nemo_rl/algorithms/opd_diagnostics.py", tuple(quantities), _parts)


def _parts(view: TopView) -> Mapping[str, Parts]:
    whole = ~view.short_lists & ~np.isnan(view.where_told(np.zeros(len(view.block["position"]))))
    parts = _conditional(view, whole) | _sampled(view, whole)
    for name, values in _true(view).items():
        parts[f"{name}_mean"] = parts[f"{name}_min"] = parts[f"{name}_max"] = per_state(values, whole)
    return {f"{_PREFIX}{name}": held for name, held in parts.items()}


def _conditional(view: TopView, whole: Bools) -> dict[str, Parts]:
    """Of probabilities renormalised on each list."""
    with np.errstate(invalid="ignore"):
        total_p, total_q = (
            np.exp(logs).sum(1, keepdims=True) for logs in (view.student_logprobs, view.teacher_logprobs)
        )
        p, q = np.exp(view.student_logprobs) / total_p, np.exp(view.teacher_logprobs) / total_q
        q_on_student = np.where(view.in_overlap, np.exp(view.teacher_logprobs_on_student) / total_q, 0.0)
        teacher_only = np.where(view.teacher_only, q, 0.0).sum(1)
        shared = np.minimum(p, q_on_student).sum(1)
        inside = np.maximum(q_on_student - p, 0.0).sum(1)
        correction = inside + teacher_only
        values = {
            "mean_jaccard": view.overlap_size / (2 * view.k - view.overlap_size),
            "mean_probability_overlap": shared,
            "mean_weighted_jaccard": shared / (np.maximum(p, q_on_student).sum(1) + teacher_only),
            "teacher_mass_on_student_topk": q_on_student.sum(1),
            "student_mass_on_teacher_topk": np.where(view.in_overlap, p, 0.0).sum(1),
            "top1_agreement_rate": (view.block["student_top_ids"][:, 0] == view.block["teacher_top_ids"][:, 0]) * 1.0,
        }
        parts = {name: per_state(found, whole) for name, found in values.items()}
        defined = whole & (correction > _SMALLEST)
        share = inside / np.where(defined, correction, 1.0)
        return parts | {"in_student_topk_correction_fraction": per_state(share, defined)}


def _sampled(view: TopView, whole: Bools) -> dict[str, Parts]:
    token = view.block["token_id"][:, None]
    return {
        f"realized_in_{side}_topk_rate": per_state(
            (view.block[f"{side}_top_ids"][:, : view.k] == token).any(1) * 1.0, whole & (token[:, 0] >= 0)
        )
        for side in ("student", "teacher")
    }


def _true(view: TopView) -> dict[str, Floats]:
    """Of probabilities over the vocabulary."""
    log_p, log_q = view.student_logprobs, view.teacher_logprobs
    found: dict[str, Floats] = {}
    for side, logs in (("student", log_p), ("teacher", log_q)):
        head = np.minimum(np.exp(logs).sum(1), 1.0)
        entropy, rest = -product(np.exp(logs), logs).sum(1), _crossed(1.0 - head, 1.0 - head)
        found |= {
            f"{side}_topk_head_prob_mass": head,
            f"{side}_ex_topk_tail_prob_mass": 1.0 - head,
            f"{side}_topk_head_entropy": entropy,
            f"{side}_ex_topk_tail_entropy_bucket": rest,
            f"{side}_topk_plus_tail_entropy_bucket": entropy + rest,
        }
    shared, other = view.in_overlap, view.teacher_logprobs_on_student
    p, q = (np.where(shared, np.exp(logs), 0.0) for logs in (log_p, other))
    in_p, in_q = np.minimum(p.sum(1), 1.0), np.minimum(q.sum(1), 1.0)
    logs_there = (np.where(shared, log_p, 0.0), np.where(shared, other, 0.0))
    crossed = {
        "student_to_teacher": (-product(p, logs_there[1]).sum(1), _crossed(1.0 - in_p, 1.0 - in_q)),
        "teacher_to_student": (-product(q, logs_there[0]).sum(1), _crossed(1.0 - in_q, 1.0 - in_p)),
    }
    for name, (inside, rest) in crossed.items():
        found[f"{name}_topk_intersection_cross_entropy"] = inside
        found[f"{name}_topk_intersection_residual_cross_entropy_bucket"] = inside + rest
    return found | {"student_topk_mass_in_teacher_topk": in_p, "teacher_topk_mass_in_student_topk": in_q}


def _crossed(mass: Floats, other: Floats) -> Floats:
    """−m log m′ of what two lists leave over, as if it were one token."""
    return -product(mass, np.log(np.maximum(other, _SMALLEST)))
