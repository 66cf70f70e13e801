"""A slow reference in float64, one state at a time, written from the definitions of the paper and nothing else.

Everything here favours being obviously right: sets are sorted lists, sums are Python sums over token ids. The fast
paths of the package are held against it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
NAN = float("nan")


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Log-probabilities of one row of logits; −inf logits have probability 0."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    top = scaled.max()
    return np.asarray(scaled - top - math.log(math.fsum(np.exp(scaled - top))))


def top_k(logits: ArrayLike, k: int) -> list[int]:
    """The k ids with the largest logits in rank order, ties by id; fewer where the rest is −inf."""
    values = [float(value) for value in np.asarray(logits)]
    possible = [token for token, value in enumerate(values) if value > -math.inf]
    return sorted(possible, key=lambda token: (-values[token], token))[:k]


def entropy(log_p: FloatArray) -> float:
    return -math.fsum(math.exp(lp) * lp for lp in log_p if lp > -math.inf)


def kl(log_p: FloatArray, log_q: FloatArray) -> float:
    """KL(p ‖ q) = Σ p (log p − log q), with 0·log 0 = 0 and p > 0, q = 0 giving +inf."""
    terms = [(lp, lq) for lp, lq in zip(log_p, log_q, strict=True) if lp > -math.inf]
    if any(lq == -math.inf for _, lq in terms):
        return math.inf
    return math.fsum(math.exp(lp) * (lp - lq) for lp, lq in terms)


def jensen_shannon(log_p: FloatArray, log_q: FloatArray) -> float:
    mixture = np.logaddexp(log_p, log_q) - math.log(2.0)
    return (kl(log_p, mixture) + kl(log_q, mixture)) / 2


def renormalise(log_p: FloatArray, support: list[int]) -> FloatArray:
    chosen = log_p[support]
    return np.asarray(chosen - np.logaddexp.reduce(chosen))


def renormalised_kl(log_p: FloatArray, log_q: FloatArray, support: list[int]) -> float:
    if not support or max(log_p[support]) == -math.inf or max(log_q[support]) == -math.inf:
        return NAN
    return kl(renormalise(log_p, support), renormalise(log_q, support))


def k_for_mass(log_p: FloatArray, logits: ArrayLike, mass: float) -> float:
    """The smallest k whose k most probable tokens hold ``mass``."""
    ranked = np.exp(log_p[top_k(logits, len(log_p))])
    reached = np.flatnonzero(np.cumsum(ranked) >= mass)
    return float(reached[0] + 1) if len(reached) else NAN


def state(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    token: int,
    k: int,
    *,
    temperature: float = 1.0,
    trace_k: int | None = None,
    correct: bool | None = None,
) -> dict[str, float]:
    """Every metric of one state. ``trace_k``: beyond it the k that a mass needs is unknown. ``correct``: the rollout's
    verdict."""
    log_p, log_q = log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    student_top, teacher_top = top_k(student_logits, k), top_k(teacher_logits, k)
    overlap = sorted(set(student_top) & set(teacher_top))

    row = {
        "overlap_ratio": len(overlap) / k,
        "student_entropy": entropy(log_p),
        "teacher_entropy": entropy(log_q),
        "student_overlap_mass": math.fsum(p[overlap]),
        "teacher_overlap_mass": math.fsum(q[overlap]),
        "student_topk_mass": math.fsum(p[student_top]),
        "teacher_topk_mass": math.fsum(q[teacher_top]),
        "reverse_kl": kl(log_p, log_q),
        "forward_kl": kl(log_q, log_p),
        "jsd": jensen_shannon(log_p, log_q),
        "sampled_reward": float(log_q[token] - log_p[token]),
    }
    row["entropy_gap"] = abs(row["teacher_entropy"] - row["student_entropy"])

    if overlap:
        log_pn, log_qn = renormalise(log_p, overlap), renormalise(log_q, overlap)
        advantage = np.exp(log_pn) * (log_qn - log_pn)
        extreme = overlap[int(np.argmax(np.abs(advantage)))]
        row["overlap_advantage"] = math.fsum(advantage) / len(overlap)
        row["extreme_advantage_gap"] = float(p[extreme] - q[extreme])
    else:
        row["overlap_advantage"] = row["extreme_advantage_gap"] = NAN
    row["overlap_advantage_beyond_one"] = row["overlap_advantage"] if len(overlap) > 1 else NAN

    supports = {
        "student": student_top,
        "teacher": teacher_top,
        "overlap": overlap,
        "non_overlap": sorted(set(student_top) ^ set(teacher_top)),
        "union": sorted(set(student_top) | set(teacher_top)),
    }
    for name, support in supports.items():
        row[f"topk_reverse_kl_{name}"] = renormalised_kl(log_p, log_q, support)

    reward = row["sampled_reward"]
    row["absolute_reward"] = abs(reward)
    row["negative_reward_share"] = float(reward < 0)
    row["near_zero_reward_share"] = float(abs(reward) < 1e-4)
    row["reward_tail_share"] = float(reward < -2)
    row["sign_noise"] = NAN if correct is None else float(reward < 0 if correct else reward > 0)
    row["student_token_probability"], row["teacher_token_probability"] = float(p[token]), float(q[token])
    row["teacher_nll"] = -float(log_q[token])
    row["student_high_entropy_share"] = float(row["student_entropy"] > 0.8)
    row["teacher_high_entropy_share"] = float(row["teacher_entropy"] > 0.8)
    uncertain = row["student_entropy"] / math.log(len(p)) if len(p) > 1 else 0.0
    apart = 1 - math.exp(-row["reverse_kl"])
    row["soft_or_score"] = uncertain + apart - uncertain * apart
    row["teachability"] = row["reverse_kl"] * math.fsum(q[student_top])

    for side, log_probabilities, logits in (
        ("student", log_p, student_logits),
        ("teacher", log_q, teacher_logits),
    ):
        for mass in (0.97, 0.99):
            needed = k_for_mass(log_probabilities, logits, mass)
            row[f"{side}_k_for_{mass}"] = NAN if trace_k is not None and needed > trace_k else needed
    return row


def states(
    student_logits: ArrayLike, teacher_logits: ArrayLike, tokens: ArrayLike, k: int, **options: Any
) -> list[dict[str, float]]:
    """:func:`state` for every row of [T, V] logits."""
    rows = zip(np.asarray(student_logits), np.asarray(teacher_logits), np.asarray(tokens), strict=True)
    return [state(p, q, int(token), k, **options) for p, q, token in rows]


def token_mean(values: ArrayLike) -> float:
    """The mean over the states on which a metric is defined; NaN over nothing."""
    defined = [float(value) for value in np.asarray(values, dtype=np.float64) if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else NAN
