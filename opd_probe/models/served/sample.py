"""What a server answers to a fixed sequence: it tells weights apart that have one name, as far as its noise allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opd_probe.models.served.answers import Told

IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3)
"""Every prefix is a prompt. The ids are so small that every vocabulary has them."""

SHORT = (0, 0)
"""What a model is asked that cannot read these; its answer is kept by nobody."""

DEPTH = 8
"""Tokens of each list that are kept."""

FLOOR = 1e-3
"""Root mean square in nats up to which two answers count as the same. A server that computes in float32 answers twice
within 1e-5; what a change of weights by less does to a metric is as small."""

NOISE = 3.0
"""How often the server's own noise two answers may be apart."""

REPEATS = 4
"""How often it is asked to see its noise, all at once, since it comes from what is batched together."""

Sample = list[list[list[float]]]
"""By state, [id, log-probability] of the most probable tokens, in JSON types."""


def sample_of(told: Told) -> Sample:
    """What is kept of an answer; states that are unknown have an empty list."""
    kept = []
    for state in range(len(told.logprob)):
        pairs = zip(told.top_ids[state, :DEPTH].tolist(), told.top_logprobs[state, :DEPTH].tolist(), strict=True)
        kept.append([[token, round(value, 5)] for token, value in pairs if np.isfinite(value)])
    return kept


def distance(first: Any, second: Any) -> float:
    """Root mean square of the differences in nats at the tokens that both list; inf where these are few."""
    try:
        pairs = [(dict(map(tuple, one)), dict(map(tuple, other))) for one, other in zip(first, second, strict=True)]
        common = [one[token] - other[token] for one, other in pairs for token in one if token in other]
        wanted = sum(min(len(one), len(other)) for one, other in pairs)
    except (TypeError, ValueError):
        return np.inf
    if not wanted or len(common) < wanted / 2:
        return np.inf
    return float(np.sqrt(np.mean(np.square(common))))


def same(first: Any, second: Any, again: Callable[[], Sequence[Any]]) -> bool:
    """Whether two answers may be of the same weights.

    Args:
        again: asks the server for more answers, which is done where the two are not equal: how far those are apart is
            its noise.
    """
    apart = distance(first, second)
    if first == second or apart <= FLOOR:
        return True
    if not np.isfinite(apart):
        return False
    noise = max((distance(second, one) for one in again()), default=0.0)
    return bool(apart <= FLOOR + NOISE * noise)
