"""What the paper's own code logs under ``val-topk/`` and ``val-extrema/``.

Read in thunlp/OPD (May 2026): ``verl/verl/workers/actor/dp_actor.py`` (``compute_distillation_reward``) for the reward,
``verl/verl/trainer/ppo/ray_trainer.py`` ("Top-K Metrics Analysis") for what is logged of it; the advantage that is
logged is the reward itself (``adv_estimator: token_reward_direct``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opd_probe.errors import InputError
from opd_probe.metrics.registry import REAL
from opd_probe.metrics.variants.variant import Parts, Quantity, Variant, per_state, per_token, product
from opd_probe.metrics.view import Bools, Floats, TopView

SUPPORTS = ("only_stu", "only_tch", "intersection", "union", "union-intersection")
WEIGHTS = ("student_p", "teacher_p", "none")

_BOTH = ("union", "union-intersection")
_AT_MAX = ("max_student_p_{}", "teacher_p_at_max_student_{}", "adv_at_max_student_{}",
           "max_teacher_p_{}", "student_p_at_max_teacher_{}", "adv_at_max_teacher_{}")  # fmt: skip


def thunlp(support: str = "only_stu", weights: str = "student_p") -> Variant:
    """The reward of the tokens of a support, and both probabilities on the overlap.

    The reward of a token v of the support is A(v) = w(v) (log q(v) − log p(v)), w being p (``student_p``) or q
    (``teacher_p``), renormalised on the support, or 1 over its size (``none``). On ``union-intersection``, the
    symmetric difference, w is not renormalised (``none``: 1). Rewards off the support are 0.

    - ``val-topk/overlap_ratio``: shared tokens over k times states.
    - ``val-topk/adv_intersection``, ``adv_only_stu``, ``adv_only_tch``: the mean of A over *tokens* (not states) in
      S_p ∩ S_q, S_p \\ S_q and S_q \\ S_p, as far as the support has their list.
    - ``val-topk/student_p_sum_intersection``, ``teacher_p_sum_intersection``: both masses of the overlap, over states
      that have one. Eq. 9 and 10 count an empty overlap as 0.
    - ``val-topk/max_student_p_intersection``: the largest p on the overlap, with the teacher's probability and the
      reward at that token (``…_at_max_student_…``); likewise for the largest q.
    - ``val-extrema/max_adv_…``, ``min_adv_…``: the largest and the smallest reward of a state, with both probabilities
      at that token: on the overlap, and for both unions also on what only one model ranked.

    Each of them again per 1,024 positions as ``…_chunk_<first>_<end>``; the last chunk ends with the longest response,
    where the peer's ends with the padding.

    Raises:
        InputError: no such support or weights.
    """
    if support not in SUPPORTS:
        raise InputError(f"variant thunlp: support {support!r}: expected one of {', '.join(SUPPORTS)}")
    if weights not in WEIGHTS:
        raise InputError(f"variant thunlp: weights {weights!r}: expected one of {', '.join(WEIGHTS)}")

    def function(view: TopView) -> Mapping[str, Parts]:
        return _parts(view, support, weights)

    return Variant(
        f"thunlp:{support}:{weights}", "thunlp/OPD, ray_trainer.py", _quantities(support), function, chunked=True
    )


def _quantities(support: str) -> tuple[Quantity, ...]:
    groups = ["intersection", *(["only_stu"] if support != "only_tch" else [])]
    groups += ["only_tch"] if support == "only_tch" or support in _BOTH else []
    found = [Quantity("val-topk/overlap_ratio", "share", True)]
    found += [Quantity(f"val-topk/adv_{group}", "nats", True, declared_range=REAL) for group in groups]
    found += [Quantity(f"val-topk/{side}_p_sum_intersection", "probability", True) for side in ("student", "teacher")]
    for form in _AT_MAX:
        unit, declared = ("nats", REAL) if form.startswith("adv") else ("probability", None)
        name, shown = f"val-topk/{form.format('intersection')}", form.startswith("max")
        found.append(Quantity(name, unit, shown, declared_range=declared))
    for group in groups if support in _BOTH else groups[:1]:
        for end in ("max", "min"):
            found.append(Quantity(f"val-extrema/{end}_adv_{group}", "nats", declared_range=REAL))
            found += [
                Quantity(f"val-extrema/{side}_p_at_{end}_adv_{group}", "probability") for side in ("student", "teacher")
            ]
    return tuple(found)


def _parts(view: TopView, support: str, weights: str) -> dict[str, Parts]:
    """Lists: the student's tokens, or for ``only_tch`` the teacher's; both unions have the teacher's beside them."""
    student = (view.student_logprobs, view.teacher_logprobs_on_student)
    teacher = (view.student_logprobs_on_teacher, view.teacher_logprobs)
    shared, in_student = view.in_overlap, view.teacher_in_overlap
    parts = {"val-topk/overlap_ratio": per_state(view.overlap_size / view.k)}
    if support in _BOTH:
        masks = (view.student_listed if support == "union" else view.student_only, view.teacher_only)
        logs = [np.concatenate(pair, axis=1) for pair in zip(student, teacher, strict=True)]
        reward = _reward(logs[0], logs[1], np.concatenate(masks, axis=1), weights, support == "union")
        own, other = reward[:, : view.k], reward[:, view.k :]
        parts |= _on_overlap(own, student, shared) | _group("only_stu", own, student, view.student_only)
        return parts | _group("only_tch", other, teacher, view.teacher_only)
    if support == "only_tch":
        reward = _reward(*teacher, view.teacher_listed, weights, True)
        parts["val-topk/adv_only_tch"] = per_token(reward, view.teacher_only)
        return parts | _on_overlap(reward, teacher, in_student)
    mask = shared if support == "intersection" else view.student_listed
    reward = _reward(*student, mask, weights, True)
    parts["val-topk/adv_only_stu"] = per_token(reward, view.student_only)
    return parts | _on_overlap(reward, student, shared)


def _reward(log_p: Floats, log_q: Floats, mask: Bools, weights: str, renormalised: bool) -> Floats:
    """A, [n, m]; 0 off the mask."""
    logs = {"student_p": log_p, "teacher_p": log_q, "none": np.zeros_like(log_p)}[weights]
    masked = np.where(mask, logs, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        if renormalised:
            top = masked.max(axis=1, keepdims=True)
            masked = masked - (top + np.log(np.exp(masked - top).sum(1, keepdims=True)))
        weight = np.where(mask, np.exp(masked), 0.0)
        return product(weight, log_q - log_p)


def _on_overlap(reward: Floats, logs: tuple[Floats, Floats], shared: Bools) -> dict[str, Parts]:
    p, q = np.exp(logs[0]), np.exp(logs[1])
    some: Bools = shared.sum(1) > 0
    parts = _group("intersection", reward, logs, shared)
    for side, values in (("student", p), ("teacher", q)):
        parts[f"val-topk/{side}_p_sum_intersection"] = per_state(np.where(shared, values, 0.0).sum(1), some)
    for names, ranked, ours, theirs in ((_AT_MAX[:3], p, p, q), (_AT_MAX[3:], q, q, p)):
        at = np.where(shared, ranked, -np.inf).argmax(1)[:, None]
        for form, values in zip(names, (ours, theirs, reward), strict=True):
            parts[f"val-topk/{form.format('intersection')}"] = per_state(_take(values, at), some)
    return parts


def _group(name: str, reward: Floats, logs: tuple[Floats, Floats], support: Bools) -> dict[str, Parts]:
    """The mean reward over the tokens of a support, and its extremes by state with both probabilities there."""
    some: Bools = support.sum(1) > 0
    unknown = np.isnan(np.where(support, reward, 0.0)).any(1)  # as with a served teacher: then which is the largest?
    parts = {f"val-topk/adv_{name}": per_token(reward, support)}
    for end, at in (
        ("max", np.where(support, reward, -np.inf).argmax(1)),
        ("min", np.where(support, reward, np.inf).argmin(1)),
    ):
        place: Any = at[:, None]
        parts[f"val-extrema/{end}_adv_{name}"] = per_state(_take(reward, place), some)
        for side, values in zip(("student", "teacher"), logs, strict=True):
            there = np.where(unknown, np.nan, np.exp(_take(values, place)))
            parts[f"val-extrema/{side}_p_at_{end}_adv_{name}"] = per_state(there, some)
    return parts


def _take(values: Floats, at: Any) -> Floats:
    taken: Floats = np.take_along_axis(values, at, 1)[:, 0]
    return taken
