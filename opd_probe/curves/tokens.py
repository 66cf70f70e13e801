"""What single tokens contribute: to the reverse KL, to the sampled reward, to the overlap; and the most extreme states.

One pass over a trace, block by block; beside a block there are a few float64 arrays as long as the vocabulary, and the
rows that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.accumulate import RolloutSums
from opd_probe.curves.intervals import Floats, Ints
from opd_probe.metrics import METRICS
from opd_probe.metrics.states import BLOCK_STATES, check_k
from opd_probe.metrics.view import TopView
from opd_probe.trace import Trace
from opd_probe.trace.schema import TOP_COLUMNS

Block = Mapping[str, NDArray[Any]]

SCALARS = (
    "position", "token_id", "student_logprob", "teacher_logprob", "student_entropy", "teacher_entropy",
    "reverse_kl", "forward_kl",
)  # fmt: skip

EXTREMES = {
    "reverse_kl": ("reverse_kl", 1.0),
    "lowest_reward": ("sampled_reward", -1.0),
    "highest_reward": ("sampled_reward", 1.0),
}
"""Kinds of extreme states: the per-state metric, and the sign under which the largest are meant."""


class TokenCounts:
    """Sums by token id; the arrays grow with the largest id seen."""

    def __init__(self) -> None:
        self._sums: dict[str, Floats] = {}

    def add(self, name: str, ids: NDArray[Any], values: NDArray[Any] | None = None) -> None:
        """Add ``values`` (1 each when None) to the sums ``name`` at ``ids``."""
        flat = ids.reshape(-1).astype(np.int64)
        added = np.bincount(flat, None if values is None else values.reshape(-1).astype(np.float64))
        held = self._sums.get(name, np.zeros(0))
        if len(added) > len(held):
            held = np.concatenate([held, np.zeros(len(added) - len(held))])
        held[: len(added)] += added
        self._sums[name] = held

    def of(self, name: str, size: int | None = None) -> Floats:
        """The sums by id, [size], or as long as they are."""
        held = self._sums.get(name, np.zeros(0))
        return held if size is None else np.concatenate([held, np.zeros(max(0, size - len(held)))])[:size]

    def sizes(self) -> list[int]:
        """One more than the largest id of each of the sums."""
        return [len(held) for held in self._sums.values()]


@dataclass
class Survey:
    """What one pass over a trace found.

    Attributes:
        counts: ``kl`` (Σ p (log p − log q) of the token over states, where it is in a stored list), ``kl_states``
            (states whose stored lists hold it), ``kl_infinite`` (states where q = 0 < p), ``reward`` and ``sampled``
            (Σ r and number of states where it is the sampled token), ``overlap`` (states where it is in S_p ∩ S_q).
        n_states: all of them; ``n_unknown``: of a stored list's entries, those whose probability is unknown.
        reverse_kl: Σ of the finite full-vocabulary reverse KL; the part of it that no stored list holds is
            ``reverse_kl`` − Σ ``kl``. NaN where it is unknown, as with a served teacher.
        extremes: per kind the rows of the most extreme states, most extreme first.
        rows: the rows of the rollouts that were asked for, by their index in the rollout table.
    """

    counts: TokenCounts = field(default_factory=TokenCounts)
    n_states: int = 0
    n_unknown: int = 0
    reverse_kl: float = 0.0
    extremes: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in EXTREMES})
    rows: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)


def survey(
    trace: Trace,
    k: int,
    *,
    n_extremes: int,
    rollouts: Mapping[int, int],
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Sums by token, the most extreme states, and the rows of some rollouts.

    Args:
        k: of the overlap sets.
        rollouts: the rollouts whose rows are kept, by index, with the largest number of rows each.
        progress: called with (states done, states in all).

    Raises:
        InputError, TraceError: a k that the trace cannot answer for.
    """
    check_k(trace, k)
    found = Survey()
    kept: dict[int, list[dict[str, NDArray[Any]]]] = {index: [] for index in rollouts}
    for block in trace.blocks([*SCALARS, *TOP_COLUMNS], BLOCK_STATES):
        view = TopView(block, k)
        values = {metric: METRICS[metric].function(view) for metric, _ in EXTREMES.values()}
        _count(found, view, values["sampled_reward"])
        for kind, (metric, sign) in EXTREMES.items():
            found.extremes[kind] = _largest(found.extremes[kind], block, values[metric] * sign, n_extremes)
        offsets = trace.rollout_offsets
        for index in np.unique(block["rollout"]).tolist():
            if index not in kept:
                continue
            rows = np.flatnonzero(block["rollout"] == index)
            first = found.n_states - int(offsets[index])
            rows = rows[(first + rows) < rollouts[index]]
            kept[index].append({name: column[rows] for name, column in block.items()})
        found.n_states += len(block["position"])
        if progress is not None:
            progress(found.n_states, trace.n_states)
    for index, parts in kept.items():
        if parts:
            found.rows[index] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found


def _count(found: Survey, view: TopView, reward: Floats) -> None:
    block = view.block
    ids, other = block["student_top_ids"], block["teacher_top_ids"]
    whole = TopView(block, ids.shape[1])
    lists = (
        (ids, "student_top_logprobs", "teacher_logprobs_at_student_top", whole.student_listed),
        (
            other,
            "student_logprobs_at_teacher_top",
            "teacher_top_logprobs",
            whole.teacher_only,
        ),  # what the student's lacks
    )
    for tokens, p, q, chosen in lists:
        terms = kl_terms(block[p], block[q])
        infinite, unknown = np.isinf(terms) & chosen, np.isnan(terms) & chosen
        chosen = chosen & np.isfinite(terms)
        found.counts.add("kl", tokens[chosen], terms[chosen])
        found.counts.add("kl_states", tokens[chosen | infinite])
        found.counts.add("kl_infinite", tokens[infinite])
        found.n_unknown += int(unknown.sum())
    known = np.isfinite(reward)
    found.counts.add("reward", block["token_id"][known], reward[known])
    found.counts.add("sampled", block["token_id"][known])
    found.counts.add("overlap", overlap_tokens(view)[1])
    kl = block["reverse_kl"].astype(np.float64)
    found.reverse_kl += float(kl[~np.isinf(kl)].sum())


def kl_terms(log_p: NDArray[Any], log_q: NDArray[Any]) -> Floats:
    """p (log p − log q) of each token, 0 where p = 0, +inf where q = 0 < p, NaN where unknown; the shape of both."""
    p, q = log_p.astype(np.float64), log_q.astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms: Floats = np.exp(p) * (p - q)
    return np.where(np.isneginf(p), 0.0, terms)


def overlap_tokens(view: TopView) -> tuple[Ints, NDArray[Any]]:
    """The rows and the ids of the tokens in S_p ∩ S_q: two arrays [m]."""
    shared = view.in_overlap
    return np.nonzero(shared)[0], view.block["student_top_ids"][:, : view.k][shared]


def _largest(held: list[dict[str, Any]], block: Block, value: Floats, n: int) -> list[dict[str, Any]]:
    """The n rows with the largest values, of those held and those of a block; earlier states win ties."""
    value = np.where(np.isnan(value), -np.inf, value)
    floor = held[-1]["extremity"] if len(held) == n else -np.inf
    rows = np.flatnonzero(value > floor)
    rows = rows[np.argsort(-value[rows], kind="stable")][:n]
    new = [
        {**{name: values[row] for name, values in block.items()}, "extremity": float(value[row])}
        for row in rows.tolist()
    ]
    return sorted([*held, *new], key=lambda one: -one["extremity"])[:n]


def disagreement_by_rollout(trace: Trace) -> tuple[str, Floats]:
    """How far the models are apart in each rollout, by the measure that the trace has.

    Returns:
        ``"reverse_kl"`` and its mean over the states of each rollout, [n_rollouts]; or, where that is unknown as with a
        served teacher, ``"sampled_loss"`` and the mean of log p − log q of the sampled token, its estimate from one
        draw per state (Eq. 3). NaN without states.
    """
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, 2)
    for block in trace.blocks(["position", "reverse_kl", "student_logprob", "teacher_logprob"], BLOCK_STATES):
        loss = 0.0 - METRICS["sampled_reward"].function(TopView(block, 1))
        sums.add(block["rollout"], np.stack([block["reverse_kl"].astype(np.float64), loss], axis=1))
    kl = sums.rollout_means(0)
    return ("sampled_loss", sums.rollout_means(1)) if np.isnan(kl).all() else ("reverse_kl", kl)


def spread_choice(values: Floats, n: int) -> list[int]:
    """Indices of n values evenly spaced in rank from the largest to the smallest, both included; NaN is left out."""
    order = np.flatnonzero(~np.isnan(values))
    order = order[np.argsort(-values[order], kind="stable")]
    if n >= len(order):
        return [int(index) for index in order]
    places = np.unique(np.round(np.linspace(0, len(order) - 1, n)).astype(int))
    return [int(order[place]) for place in places]


def response_tokens(trace: Trace, rollouts: Sequence[int]) -> dict[int, tuple[Ints, Ints]]:
    """For some rollouts, by index, the positions and the token ids of all their states."""
    wanted = np.zeros(trace.rollouts.num_rows, dtype=bool)
    wanted[list(rollouts)] = True
    parts: dict[int, list[tuple[Ints, Ints]]] = {index: [] for index in rollouts}
    for block in trace.blocks(["position", "token_id"]):
        inside = wanted[block["rollout"]]
        for index in np.unique(block["rollout"][inside]).tolist():
            rows = block["rollout"] == index
            parts[index].append((block["position"][rows].astype(np.int64), block["token_id"][rows].astype(np.int64)))
    none = np.empty(0, dtype=np.int64)
    return {
        index: tuple(np.concatenate([part[side] for part in found]) if found else none for side in (0, 1))  # type: ignore[misc]
        for index, found in parts.items()
    }
