"""What Fireworks' cookbook computes from the top-k log-probabilities of both models, logged under ``distill/``.

Read in fw-ai/cookbook, branch ``renfei/opd-metrics`` (April 2026), ``training/utils/opd_metrics.py``: its
``compute_opd_metrics`` takes one sequence's top lists. The recipe there calls it once a step, with all responses as one
sequence and the student's sampled token alone for its list, so that curves of that recipe say less than their names.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opd_probe.metrics.overlap import overlap_ratio, student_overlap_mass, teacher_overlap_mass
from opd_probe.metrics.registry import REAL
from opd_probe.metrics.variants.variant import Parts, Quantity, Variant, per_state, product
from opd_probe.metrics.view import Floats, TopView

QUARTERS = 4


def fireworks() -> Variant:
    """Eq. 6-10 from top-k lists alone, with entropies of what the lists hold.

    - ``overlap_ratio``, ``overlap_mass_student``, ``overlap_mass_teacher``: as Eq. 6, 9 and 10.
    - ``overlap_advantage``: Eq. 7, except that tokens to which one of the models gives no probability are left out of
      the sum.
    - ``student_entropy``, ``teacher_entropy``: H of p renormalised on S_p, and of q renormalised on S_q, where ours are
      over the full vocabulary; ``entropy_gap``: the mean of their absolute differences.
    - ``per_position_entropy/q1`` … ``q4``: that student entropy over the quarters of a response of T states:
      ⌊T/4⌋ each (at least 1), the rest in the last. Quarters of shorter responses that are empty count there as 0; here
      they do not count.

    The peer's function sees one sequence; here all states count once, and ``average: rollout`` is the mean of its
    values over responses.
    """
    names = [("overlap_ratio", "share"), ("overlap_advantage", "nats"), ("entropy_gap", "nats"),
             ("overlap_mass_student", "probability"), ("overlap_mass_teacher", "probability"),
             ("student_entropy", "nats"), ("teacher_entropy", "nats")]  # fmt: skip
    signed = {"overlap_advantage": REAL}  # tokens may be left out of its sum
    quantities = [Quantity(f"distill/{name}", unit, True, declared_range=signed.get(name)) for name, unit in names]
    quantities += [Quantity(_quarter(number), "nats") for number in range(QUARTERS)]
    return Variant("fireworks", "fw-ai/cookbook, OPD metrics", tuple(quantities), _parts)


def _quarter(number: int) -> str:
    return f"distill/per_position_entropy/q{number + 1}"


def _parts(view: TopView) -> Mapping[str, Parts]:
    student, teacher = _entropy(view.student_logprobs), _entropy(view.teacher_logprobs)
    found = {
        "overlap_ratio": overlap_ratio(view), "entropy_gap": np.abs(teacher - student),
        "overlap_mass_student": student_overlap_mass(view), "overlap_mass_teacher": teacher_overlap_mass(view),
        "student_entropy": student, "teacher_entropy": teacher,
    }  # fmt: skip
    parts = {f"distill/{name}": per_state(values) for name, values in found.items()}
    parts["distill/overlap_advantage"] = per_state(_advantage(view), view.overlap_size > 0)
    size = np.maximum(1, view.block["state_count"] // QUARTERS)
    quarter = np.minimum(view.block["state_index"] // size, QUARTERS - 1)
    return parts | {_quarter(number): per_state(student, quarter == number) for number in range(QUARTERS)}


def _entropy(logs: Floats) -> Floats:
    """H of the listed probabilities, renormalised, [n]."""
    p = np.exp(logs)
    total = p.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy: Floats = np.log(total) - product(p, logs).sum(1) / total
    return entropy


def _advantage(view: TopView) -> Floats:
    log_p, log_q = view.student_logprobs, view.teacher_logprobs_on_student
    shift_p, shift_q = view.overlap_log_partitions
    counted = view.in_overlap & ~np.isneginf(log_p) & ~np.isneginf(log_q)
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p - shift_p) * ((log_q - shift_q) - (log_p - shift_p))
        advantage: Floats = np.where(counted, terms, 0.0).sum(1) / view.overlap_size
    return advantage
