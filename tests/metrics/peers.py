"""The peers' definitions again, one state and one token at a time in float64: obviously right, and slow.

Written from what the peers' sources compute, not from the package. A state is (log p, log q, S_p, S_q): full
log-probabilities by token id, and both top lists in rank order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import log_softmax, top_k

State = tuple[list[float], list[float], list[int], list[int]]


def states_of(student: ArrayLike, teacher: ArrayLike, k: int) -> list[State]:
    return [
        (list(log_softmax(s)), list(log_softmax(t)), top_k(s, k), top_k(t, k))
        for s, t in zip(np.asarray(student), np.asarray(teacher), strict=True)
    ]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def verl(states: Sequence[State], k: int, clamp: float = -math.inf, largest_loss: float = math.inf) -> dict[str, float]:
    ratio, advantage, student_mass, teacher_mass, loss = [], [], [], [], []
    for log_p, log_q, student_top, teacher_top in states:
        contribution = {v: math.exp(max(log_q[v], clamp)) * (max(log_q[v], clamp) - max(log_p[v], clamp))
                        for v in teacher_top}  # fmt: skip
        overlap = [v for v in teacher_top if v in student_top]
        ratio.append(len(overlap) / k)
        if overlap:
            advantage.append(-sum(contribution[v] for v in overlap) / len(overlap))
        student_mass.append(sum(math.exp(log_p[v]) for v in teacher_top))
        teacher_mass.append(sum(math.exp(log_q[v]) for v in teacher_top))
        loss.append(max(0.0, sum(contribution.values())))
    found = {"overlap_ratio": mean(ratio), "overlap_token_advantage": mean(advantage)}
    for name, values in (("student_mass", student_mass), ("teacher_mass", teacher_mass), ("loss", loss)):
        found |= {name: mean(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    found["loss"] = mean([min(value, largest_loss) for value in loss])
    return {f"distillation/{name}": value for name, value in found.items()}


def fireworks(responses: Sequence[Sequence[State]]) -> dict[str, float]:
    def entropy(logs: Sequence[float], listed: Sequence[int]) -> float:
        total = sum(math.exp(logs[v]) for v in listed)
        return -sum(math.exp(logs[v]) / total * math.log(math.exp(logs[v]) / total) for v in listed)

    lists: dict[str, list[float]] = {}
    for response in responses:
        size = max(1, len(response) // 4)
        for index, (log_p, log_q, student_top, teacher_top) in enumerate(response):
            overlap = set(student_top) & set(teacher_top)
            row = {
                "overlap_ratio": len(overlap) / max(len(student_top), len(teacher_top)),
                "overlap_mass_student": sum(math.exp(log_p[v]) for v in overlap),
                "overlap_mass_teacher": sum(math.exp(log_q[v]) for v in overlap),
                "student_entropy": entropy(log_p, student_top),
                "teacher_entropy": entropy(log_q, teacher_top),
            }
            row["entropy_gap"] = abs(row["teacher_entropy"] - row["student_entropy"])
            row[f"per_position_entropy/q{min(index // size, 3) + 1}"] = row["student_entropy"]
            if overlap:
                zp, zq = row["overlap_mass_student"], row["overlap_mass_teacher"]
                p, q = {v: math.exp(log_p[v]) / zp for v in overlap}, {v: math.exp(log_q[v]) / zq for v in overlap}
                row["overlap_advantage"] = sum(p[v] * (math.log(q[v]) - math.log(p[v])) for v in overlap) / len(overlap)
            for name, value in row.items():
                lists.setdefault(name, []).append(value)
    return {f"distill/{name}": mean(values) for name, values in lists.items()}


def nemo_rl(states: Sequence[State], tokens: Sequence[int]) -> dict[str, float]:
    """Where no list is short; a list of 0 rest has log(1e-12) in place of its logarithm."""
    found: dict[str, list[float]] = {}

    def rest_of(mass: float, other: float) -> float:
        return -mass * math.log(max(other, 1e-12)) if mass > 0 else 0.0

    for (log_p, log_q, student_top, teacher_top), token in zip(states, tokens, strict=True):
        shared = [v for v in student_top if v in teacher_top]
        union = set(student_top) | set(teacher_top)
        sums = {side: math.fsum(math.exp(logs[v]) for v in top)
                for side, logs, top in (("p", log_p, student_top), ("q", log_q, teacher_top))}  # fmt: skip
        p = {v: math.exp(log_p[v]) / sums["p"] if v in student_top else 0.0 for v in union}
        q = {v: math.exp(log_q[v]) / sums["q"] if v in teacher_top else 0.0 for v in union}
        least, most = (math.fsum(pick(p[v], q[v]) for v in union) for pick in (min, max))
        missing = {v: max(q[v] - p[v], 0.0) for v in union}
        row = {
            "mean_jaccard": len(shared) / len(union),
            "mean_probability_overlap": least,
            "mean_weighted_jaccard": least / most,
            "teacher_mass_on_student_topk": sum(q[v] for v in student_top),
            "student_mass_on_teacher_topk": sum(p[v] for v in teacher_top),
            "top1_agreement_rate": float(student_top[0] == teacher_top[0]),
            "realized_in_teacher_topk_rate": float(token in teacher_top),
            "realized_in_student_topk_rate": float(token in student_top),
        }
        if sum(missing.values()) > 1e-12:
            row["in_student_topk_correction_fraction"] = sum(missing[v] for v in student_top) / sum(missing.values())
        in_p, in_q = (math.fsum(math.exp(logs[v]) for v in shared) for logs in (log_p, log_q))
        for side, logs, top in (("student", log_p, student_top), ("teacher", log_q, teacher_top)):
            head = math.fsum(math.exp(logs[v]) for v in top)
            entropy, tail = -sum(math.exp(logs[v]) * logs[v] for v in top), rest_of(1 - head, 1 - head)
            row |= {f"{side}_topk_head_prob_mass": head, f"{side}_ex_topk_tail_prob_mass": 1 - head,
                    f"{side}_topk_head_entropy": entropy, f"{side}_ex_topk_tail_entropy_bucket": tail,
                    f"{side}_topk_plus_tail_entropy_bucket": entropy + tail}  # fmt: skip
        row |= {"student_topk_mass_in_teacher_topk": in_p, "teacher_topk_mass_in_student_topk": in_q}
        for name, own, other, mass, rest in (("student_to_teacher", log_p, log_q, in_p, in_q),
                                             ("teacher_to_student", log_q, log_p, in_q, in_p)):  # fmt: skip
            crossed = -sum(math.exp(own[v]) * other[v] for v in shared)
            row[f"{name}_topk_intersection_cross_entropy"] = crossed
            row[f"{name}_topk_intersection_residual_cross_entropy_bucket"] = crossed + rest_of(1 - mass, 1 - rest)
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    ends = ("_rate", "_on_student_topk", "_on_teacher_topk")
    means = {name for name in found if name.startswith(("mean_", "in_")) or name.endswith(ends)}
    values = {name: mean(found[name]) for name in means}
    for name in found.keys() - means:
        values |= {f"{name}_mean": mean(found[name]), f"{name}_min": min(found[name]), f"{name}_max": max(found[name])}
    return {f"on_policy_distillation/topk_stats/{name}": value for name, value in values.items()}


def rewards(log_p: list[float], log_q: list[float], members: list[int], support: str, weights: str) -> dict[int, float]:
    raw = {}
    for v in members:
        raw[v] = {"student_p": math.exp(log_p[v]), "teacher_p": math.exp(log_q[v]), "none": 1.0}[weights]
    total = 1.0 if support == "union-intersection" else sum(raw.values())
    return {v: raw[v] / total * (log_q[v] - log_p[v]) for v in members}


def thunlp(states: Sequence[State], support: str, weights: str, k: int) -> dict[str, float]:
    lists: dict[str, list[float]] = {}

    def log(name: str, value: float) -> None:
        lists.setdefault(name, []).append(value)

    shared_tokens = 0
    for log_p, log_q, student_top, teacher_top in states:
        overlap = [v for v in student_top if v in teacher_top]
        only_student = [v for v in student_top if v not in teacher_top]
        only_teacher = [v for v in teacher_top if v not in student_top]
        shared_tokens += len(overlap)
        members = {
            "only_stu": student_top,
            "only_tch": teacher_top,
            "intersection": overlap,
            "union": student_top + only_teacher,
            "union-intersection": only_student + only_teacher,
        }[support]
        reward = dict.fromkeys(student_top + teacher_top, 0.0) | rewards(log_p, log_q, members, support, weights)
        groups: dict[str, list[int]] = {"intersection": overlap}
        if support != "only_tch":
            groups["only_stu"] = only_student
        if support in ("only_tch", "union", "union-intersection"):
            groups["only_tch"] = only_teacher
        for name, tokens in groups.items():
            for v in tokens:
                log(f"val-topk/adv_{name}", reward[v])
            if tokens and (name == "intersection" or support in ("union", "union-intersection")):
                for end, pick in (("max", max), ("min", min)):
                    at = pick(tokens, key=reward.__getitem__)
                    log(f"val-extrema/{end}_adv_{name}", reward[at])
                    log(f"val-extrema/student_p_at_{end}_adv_{name}", math.exp(log_p[at]))
                    log(f"val-extrema/teacher_p_at_{end}_adv_{name}", math.exp(log_q[at]))
        if overlap:
            log("val-topk/student_p_sum_intersection", sum(math.exp(log_p[v]) for v in overlap))
            log("val-topk/teacher_p_sum_intersection", sum(math.exp(log_q[v]) for v in overlap))
            first, second = max(overlap, key=log_p.__getitem__), max(overlap, key=log_q.__getitem__)
            log("val-topk/max_student_p_intersection", math.exp(log_p[first]))
            log("val-topk/teacher_p_at_max_student_intersection", math.exp(log_q[first]))
            log("val-topk/adv_at_max_student_intersection", reward[first])
            log("val-topk/max_teacher_p_intersection", math.exp(log_q[second]))
            log("val-topk/student_p_at_max_teacher_intersection", math.exp(log_p[second]))
            log("val-topk/adv_at_max_teacher_intersection", reward[second])
    found: dict[str, Any] = {name: mean(values) for name, values in lists.items()}
    return {"val-topk/overlap_ratio": shared_tokens / (k * len(states)), **found}
