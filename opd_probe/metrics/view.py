"""The stored top lists of a block of states, cut at k, with what several metrics share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class TopView:
    """A block of n states of a trace, seen at k.

    Top lists are in rank order, so that the top-k of a trace is its first k entries. Everything is float64.

    Args:
        block: arrays by column name, as a trace yields them.
        k: the size of both top sets, at most the K of the trace.
    """

    def __init__(self, block: Mapping[str, NDArray[Any]], k: int) -> None:
        self.block = block
        self.k = k

    def scalar(self, name: str) -> Floats:
        """A stored column with one value per state, [n]; all NaN when the trace lacks it."""
        if name not in self.block:
            return np.full(len(self.block["position"]), np.nan)
        return np.asarray(self.block[name], dtype=np.float64)

    def _top(self, name: str) -> Floats:
        return np.asarray(self.block[name][:, : self.k], dtype=np.float64)

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
    def _match(self) -> Ints:
        return match_ranks(self.block["student_top_ids"][:, : self.k], self.block["teacher_top_ids"][:, : self.k])

    @cached_property
    def in_overlap(self) -> Bools:
        """Which tokens of S_p are in S_q too, [n, k]."""
        return self._match < self.k

    @cached_property
    def teacher_only(self) -> Bools:
        """Which tokens of S_q are not in S_p, [n, k]."""
        only = np.ones(self._match.shape, dtype=bool)
        rows, columns = np.nonzero(self.in_overlap)
        only[rows, self._match[rows, columns]] = False
        return only

    @cached_property
    def overlap_size(self) -> Floats:
        """|S_p ∩ S_q|, [n]."""
        size: Floats = self.in_overlap.sum(1).astype(np.float64)
        return size

    @cached_property
    def kl_on_overlap(self) -> Floats:
        """KL(p̄ ‖ q̄) renormalised on S_p ∩ S_q, [n]; NaN where the overlap is empty."""
        return renormalised_kl(self.student_logprobs, self.teacher_logprobs_on_student, self.in_overlap)

    @cached_property
    def overlap_log_partitions(self) -> tuple[Floats, Floats]:
        """log of the mass of p and of q on S_p ∩ S_q, [n, 1] each; NaN where there is none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            log_p = _partition(self.student_logprobs, self.in_overlap)[1]
            log_q = _partition(self.teacher_logprobs_on_student, self.in_overlap)[1]
        return log_p[:, None], log_q[:, None]

    @cached_property
    def union_logprobs(self) -> tuple[Floats, Floats]:
        """log p and log q on S_p followed by S_q, [n, 2k] each; a mask picks the tokens that are meant."""
        p = np.concatenate([self.student_logprobs, self.student_logprobs_on_teacher], axis=1)
        q = np.concatenate([self.teacher_logprobs_on_student, self.teacher_logprobs], axis=1)
        return p, q


def match_ranks(left: NDArray[Any], right: NDArray[Any]) -> Ints:
    """For each id of ``left`` its 0-based rank in the same row of ``right``, or the width of ``right``.

    Args:
        left: int [n, i], right: int [n, j]; ids within a row are distinct and non-negative.

    Returns:
        int64 [n, i].
    """
    width = right.shape[1]
    depth = max(left.shape[1], width)
    bits = (2 * depth).bit_length()
    # One sort of both lists, by id and then by side and rank: an id of both stands twice in a row.
    keys = np.concatenate([left, right], axis=1).astype(np.int64)
    keys <<= bits
    keys += np.concatenate([np.arange(left.shape[1]), depth + np.arange(width)])
    keys.sort(axis=1)
    place = keys & ((1 << bits) - 1)
    keys >>= bits
    rows, at = np.nonzero(keys[:, 1:] == keys[:, :-1])
    ranks = np.full(left.shape, width, dtype=np.int64)
    ranks[rows, place[rows, at]] = place[rows, at + 1] - depth
    return ranks


def renormalised_kl(log_p: Floats, log_q: Floats, support: Bools | None = None) -> Floats:
    """KL(p̄ ‖ q̄) with both distributions renormalised on a support, in nats: [n].

    NaN where the support is empty, a probability on it is unknown (NaN), or one side has no mass there; +inf
    where p̄ > 0 and q̄ = 0. Not clamped: rounding can leave −1e-16 where both agree.

    Args:
        log_p, log_q: [n, m] log-probabilities, not renormalised.
        support: bool [n, m]; None for all of them.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p, log_zp = _partition(log_p, support)
        _, log_zq = _partition(log_q, support)
        terms = log_p - log_q
        terms *= p
        terms[p == 0] = 0.0  # 0 log 0 = 0, whatever q is
        kl: Floats = terms.sum(1) / p.sum(1) - (log_zp - log_zq)
    return kl


def _partition(logs: Floats, support: Bools | None) -> tuple[Floats, Floats]:
    """exp of the logs, scaled to a largest value of 1 and 0 off the support, [n, m]; and the log of their sum, [n]."""
    masked = logs if support is None else np.where(support, logs, -np.inf)
    top = masked.max(axis=1, keepdims=True)
    values = np.exp(masked - top)
    return values, np.log(values.sum(1)) + top[:, 0]
