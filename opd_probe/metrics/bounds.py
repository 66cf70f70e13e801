"""What a served teacher's list says of quantities over the whole vocabulary: bounds, whatever it did not tell.

Known are q and p at a set L of tokens (the teacher's list, those of the student's list that the server told of, and
the sampled token), and all of p's entropy. Of the other N = |V| − |L| tokens it is known that together they have
Q = 1 − Σ_L q and P = 1 − Σ_L p, and that none of them has more than c, the least q of the teacher's list.

- KL(p ‖ q) = Σ_L p log(p / q) + Σ_rest p log(p / q). By the log-sum inequality the rest is at least P log(P / Q);
  and since q ≤ c there, at least −H_rest(p) − P log c with H_rest(p) = H(p) + Σ_L p log p. The larger of both counts.
  There is no upper bound: a token that was not told may be as improbable as one likes.
- H(q) = −Σ_L q log q + H_rest(q), and H_rest(q) is largest where Q is spread evenly, Q log(N / Q), and smallest where
  as many tokens as fit have c and one has what is left.
- |H(q) − H(p)| follows from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.metrics.view import Bools, Floats, TopView

BOUNDS = ("reverse_kl_least", "teacher_entropy_least", "teacher_entropy_most", "entropy_gap_least", "entropy_gap_most")
"""The columns, in nats."""

NEEDS = (
    "student_top_ids", "student_top_logprobs", "teacher_logprobs_at_student_top", "teacher_top_ids",
    "teacher_top_logprobs", "student_logprobs_at_teacher_top", "student_logprob", "teacher_logprob", "student_entropy",
)  # fmt: skip
"""The columns of a trace that they are made of, beside ``token_id``."""

SLACK = 1e-6
"""What rounding of told log-probabilities may move a sum of probabilities, or their entropy, by."""


def state_bounds(block: Mapping[str, NDArray[Any]], vocabulary_size: int) -> dict[str, Floats]:
    """The bounds at each state of a block, [n] each, in nats; NaN where ids of the list are not shared.

    Args:
        block: the columns :data:`NEEDS` and ``token_id``.
        vocabulary_size: of the shared vocabulary.
    """
    p_log, q_log, known = _known(block)
    p, q = np.exp(np.where(known, p_log, -np.inf)), np.exp(np.where(known, q_log, -np.inf))
    inside = p > 0
    p_terms = np.where(inside, p * np.where(inside, p_log, 0.0), 0.0)
    cross = np.where(inside, p * np.where(inside, q_log, 0.0), 0.0)
    q_terms = np.where(q > 0, q * np.where(q > 0, q_log, 0.0), 0.0)
    rest_p = np.maximum(1.0 - p.sum(1), 0.0)
    rest_q = np.maximum(1.0 - q.sum(1), 0.0)
    most_q = rest_q + SLACK
    least_listed = np.where(block["teacher_top_ids"] >= 0, np.asarray(block["teacher_top_logprobs"], float), np.inf)
    cap = np.exp(np.minimum(least_listed.min(1), 0.0))
    unknown = np.maximum(vocabulary_size - known.sum(1), 0)

    student = np.asarray(block["student_entropy"], dtype=np.float64)
    told = (p_terms - cross).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_mass = np.where(rest_p > 0, rest_p * np.log(rest_p / most_q), 0.0)
        of_rest = np.maximum(student + p_terms.sum(1), 0.0)
        by_cap = np.where(rest_p > 0, -of_rest - rest_p * np.log(cap), 0.0)
    kl = np.maximum(told + np.maximum(by_mass, by_cap) - SLACK, 0.0)

    listed = -q_terms.sum(1)
    low = np.maximum(listed + _packed(np.maximum(rest_q - SLACK, 0.0), cap) - SLACK, 0.0)
    high = listed + _spread(most_q, unknown) + SLACK
    gap = np.stack([low - student, student - high])
    values = (kl, low, high, np.maximum(gap.max(0), 0.0), np.maximum(high - student, student - low))
    whole = (block["teacher_top_ids"] >= 0).all(1) & ~np.isnan(student)
    return {name: np.where(whole, value, np.nan) for name, value in zip(BOUNDS, values, strict=True)}


def _known(block: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats, Bools]:
    """log p and log q side by side, [n, 2K + 1], and where both are told, each token once."""
    depth = block["teacher_top_ids"].shape[1]
    view = TopView(block, depth)
    sampled = np.asarray(block["token_id"])[:, None]
    told = ~np.isnan(view.teacher_logprobs_on_student) & view.student_only
    elsewhere = (block["teacher_top_ids"] == sampled).any(1) | ((block["student_top_ids"] == sampled) & told).any(1)
    alone = ~np.isnan(block["teacher_logprob"]) & ~np.isnan(block["student_logprob"]) & ~elsewhere
    p = np.concatenate(
        [view.student_logprobs_on_teacher, view.student_logprobs, view.scalar("student_logprob")[:, None]], 1
    )
    q = np.concatenate(
        [view.teacher_logprobs, view.teacher_logprobs_on_student, view.scalar("teacher_logprob")[:, None]], 1
    )
    of_teacher = view.teacher_listed & ~np.isnan(view.teacher_logprobs + view.student_logprobs_on_teacher)
    return p, q, np.concatenate([of_teacher, told, alone[:, None]], 1)


def _packed(mass: Floats, cap: Floats) -> Floats:
    """The least −Σ q log q of a mass whose parts are at most ``cap``: as many of these as fit, and what is left."""
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.floor(mass / cap)
        left = np.clip(mass - count * cap, 0.0, None)
        return count * -cap * np.log(cap) + np.where(left > 0, -left * np.log(left), 0.0)


def _spread(mass: Floats, count: NDArray[np.int64]) -> Floats:
    """The largest −Σ q log q of a mass over so many tokens: spread evenly."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, mass * np.log(np.maximum(count, 1) / mass), 0.0)
