"""The stored top lists of a block of states, cut at k, with what several metrics share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class TopView:
    """A block of n states of a trace, seen at k.

    Top lists are in rank order, so that the top-k of a trace is its first k entries. An entry whose own log-probability
    is −inf stands behind the end of its list: no id of probability above 0 was left. One of NaN is not known, as where
    a served teacher's list ends. Everything is float64, and laid out rank by rank: arithmetic over ranks then runs
    along memory for all states at once, several times as fast.

    Args:
        block: arrays by column name, as a trace yields them.
        k: the size of both top sets, at most the K of the trace.
    """

    def __init__(self, block: Mapping[str, NDArray[Any]], k: int) -> None:
        self.block = block
        self.k = k
        self._running: dict[str, Floats] = {}

    def scalar(self, name: str) -> Floats:
        """A stored column with one value per state, [n]; all NaN when the trace lacks it."""
        if name not in self.block:
            return np.full(len(self.block["position"]), np.nan)
        return np.asarray(self.block[name], dtype=np.float64)

    def _top(self, name: str) -> Floats:
        return np.asarray(self.block[name][:, : self.k], dtype=np.float64, order="F")

    @cached_property
    def student_logprobs(self) -> Floats:
        """log p on S_p, [n, k]."""
        return self._top("student_top_logprobs")

    @cached_property
    def teacher_logprobs_on_student(self) -> Floats:
        """log q on S_p, [n, k]."""
        return self._top("teacher_logprobs_at_student_top")

    @cached_property
    def teacher_logprobs(self) -> Floats:
        """log q on S_q, [n, k]."""
        return self._top("teacher_top_logprobs")

    @cached_property
    def student_logprobs_on_teacher(self) -> Floats:
        """log p on S_q, [n, k]."""
        return self._top("student_logprobs_at_teacher_top")

    @cached_property
    def student_probabilities(self) -> Floats:
        """p on S_p, [n, k]."""
        return np.exp(self.student_logprobs)

    @cached_property
    def teacher_probabilities_on_student(self) -> Floats:
        """q on S_p, [n, k]."""
        return np.exp(self.teacher_logprobs_on_student)

    def running_mass(self, side: str) -> Floats:
        """What the ``student``'s or the ``teacher``'s 1 … K most probable tokens hold, [n, K]: the trace's K, not k."""
        if side not in self._running:
            logs = np.asarray(self.block[f"{side}_top_logprobs"], dtype=np.float64, order="F")
            self._running[side] = running_sums(np.exp(logs))
        return self._running[side]

    @cached_property
    def student_listed(self) -> Bools:
        """Which ranks of the student's list hold a token, [n, k]: all of them, or those before its end."""
        return listed(self.block, "student", self.k)

    @cached_property
    def teacher_listed(self) -> Bools:
        """Which ranks of the teacher's list hold a token or may do so, [n, k]."""
        return listed(self.block, "teacher", self.k)

    @property
    def short_lists(self) -> Bools:
        """Where one of the models gives fewer than k ids a probability above 0, [n]."""
        short: Bools = ~(self.student_listed[:, -1] & self.teacher_listed[:, -1])
        return short

    @cached_property
    def _shared(self) -> tuple[Bools, Bools]:
        return shared_ids(*comparable_ids(self.block, self.student_listed, self.teacher_listed))

    @property
    def in_overlap(self) -> Bools:
        """Which ranks of the student's list hold a token of S_p ∩ S_q, [n, k]."""
        return self._shared[0]

    @property
    def teacher_in_overlap(self) -> Bools:
        """Which ranks of the teacher's list hold a token of S_p ∩ S_q, [n, k]."""
        return self._shared[1]

    @cached_property
    def student_only(self) -> Bools:
        """Which ranks of the student's list hold a token that is not in S_q, [n, k]."""
        return self.student_listed & ~self.in_overlap

    @cached_property
    def teacher_only(self) -> Bools:
        """Which ranks of the teacher's list hold a token that is not in S_p, [n, k]."""
        return self.teacher_listed & ~self.teacher_in_overlap

    @cached_property
    def overlap_size(self) -> Floats:
        """|S_p ∩ S_q|, [n]; NaN where S_q is not known."""
        size: Floats = self.in_overlap.sum(1).astype(np.float64)
        return self.where_told(size)

    def where_told(self, values: Floats) -> Floats:
        """Values of states, [n], and NaN where the teacher did not tell k tokens: a served one may not."""
        ended = (self.block["teacher_top_ids"][:, self.k - 1] < 0) & self.teacher_listed[:, -1]
        return np.where(ended, np.nan, values) if ended.any() else values

    @cached_property
    def untold_on_student(self) -> Bools:
        """Where q is unknown at a token of S_p, [n]: a served teacher tells it where both agree on the tokens."""
        return np.asarray(np.isnan(self.block["teacher_logprobs_at_student_top"][:, : self.k]).any(1))

    @cached_property
    def _overlap_partitions(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        return (
            _partition(self.student_logprobs, self.in_overlap),
            _partition(self.teacher_logprobs_on_student, self.in_overlap),
        )

    @cached_property
    def kl_on_overlap(self) -> Floats:
        """KL(p̄ ‖ q̄) renormalised on S_p ∩ S_q, [n]; NaN where the overlap is empty or not known."""
        kl = _kl(self.student_logprobs, self.teacher_logprobs_on_student, *self._overlap_partitions)
        return self.where_told(kl)

    @cached_property
    def overlap_log_partitions(self) -> tuple[Floats, Floats]:
        """log of the mass of p and of q on S_p ∩ S_q, [n, 1] each; NaN where there is none."""
        (_, log_p), (_, log_q) = self._overlap_partitions
        return log_p[:, None], log_q[:, None]

    @cached_property
    def union_logprobs(self) -> tuple[Floats, Floats]:
        """log p and log q on S_p followed by S_q, [n, 2k] each; a mask picks the tokens that are meant."""
        p = np.concatenate([self.student_logprobs, self.student_logprobs_on_teacher], axis=1)
        q = np.concatenate([self.teacher_logprobs_on_student, self.teacher_logprobs], axis=1)
        return p, q


def listed(block: Mapping[str, NDArray[Any]], side: str, k: int) -> Bools:
    """Which of the first k ranks of a model's list hold a token, or an unknown one, [n, k]; the rest have
    probability 0."""
    own = block[f"{side}_top_logprobs"]
    if not np.isneginf(own[:, k - 1]).any():  # in rank order, so that nothing before has ended either
        return np.ones((k, len(own)), dtype=bool).T
    return np.asarray(~np.isneginf(own[:, :k]), order="F")


def comparable_ids(block: Mapping[str, NDArray[Any]], student: Bools, teacher: Bools) -> tuple[NDArray[Any], ...]:
    """The student's and the teacher's ids at the ranks of two masks, with what is equal to no other id off them."""
    found = []
    for side, mask, nothing in (("student", student, -2), ("teacher", teacher, -3)):
        ids = block[f"{side}_top_ids"][:, : mask.shape[1]]
        found.append(ids if mask.all() else np.where(mask, ids, nothing))
    return tuple(found)


def shared_ids(left: NDArray[Any], right: NDArray[Any], *, entering: bool = False) -> tuple[Bools, Bools]:
    """Which ids of two lists stand in the other one too, state by state.

    Args:
        left, right: int [n, k]; ids within a row are distinct.
        entering: mark a shared id only in the list that ranks it lower, the left one when both rank it alike: at the
            rank from which on it is in both top sets.

    Returns:
        Two masks, bool [n, k] each, rank by rank in memory.
    """
    # Every rank against every rank: k² comparisons, but of whole columns, which costs less than sorting up to k ≈ 200.
    own, other = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    in_left, in_right = np.empty(own.shape, dtype=bool), np.zeros(own.shape, dtype=bool)
    buffer = np.empty(own.shape, dtype=bool)
    for rank, ids in enumerate(own):
        same = np.equal(other, ids, out=buffer)
        split = rank + 1 if entering else len(own)
        np.logical_or.reduce(same[:split], axis=0, out=in_left[rank])
        rest = slice(split if entering else 0, None)
        in_right[rest] |= same[rest]
    return in_left.T, in_right.T


def running_sums(values: Floats) -> Floats:
    """Sums over the ranks up to each, [n, k], in place."""
    for rank in range(1, values.shape[1]):
        values[:, rank] += values[:, rank - 1]
    return values


def renormalised_kl(log_p: Floats, log_q: Floats, support: Bools | None = None) -> Floats:
    """KL(p̄ ‖ q̄) with both distributions renormalised on a support, in nats: [n].

    NaN where the support is empty, a probability on it is unknown (NaN), or one side has no mass there; +inf
    where p̄ > 0 and q̄ = 0. What rounding leaves below 0, about −1e-16, is 0.

    Args:
        log_p, log_q: [n, m] log-probabilities, not renormalised.
        support: bool [n, m]; None for all of them.
    """
    return _kl(log_p, log_q, _partition(log_p, support), _partition(log_q, support))


def _kl(log_p: Floats, log_q: Floats, of_p: tuple[Floats, Floats], of_q: tuple[Floats, Floats]) -> Floats:
    p, log_zp = of_p
    with np.errstate(invalid="ignore"):
        terms = log_p - log_q
        terms *= p
        if not np.isfinite(terms).all():
            terms[p == 0] = 0.0  # 0 log 0 = 0, whatever q is
        kl: Floats = terms.sum(1) / p.sum(1) - (log_zp - of_q[1])
        return np.maximum(kl, 0.0) + 0.0  # NaN stays; −0.0 + 0.0 is 0.0


def _partition(logs: Floats, support: Bools | None) -> tuple[Floats, Floats]:
    """exp of the logs, scaled to a largest value of 1 and 0 off the support, [n, m]; and the log of their sum, [n]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        masked = logs if support is None else np.where(support, logs, -np.inf)
        top = masked.max(axis=1, keepdims=True)
        values = masked - top
        np.exp(values, out=values)
        return values, np.log(values.sum(1)) + top[:, 0]
