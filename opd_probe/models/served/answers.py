"""What a server says of states, read state by state: a list that is none leaves its state unknown, with what came."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLAMPED = -9999.0
"""vLLM writes it for a log-probability of −inf, which JSON does not have."""

NOTHING = -1
"""In place of an id where nothing is known; :data:`opd_probe.stats.topk.NO_ID`."""

ROUNDING = 1e-2
"""How far probabilities of a server's precision add up to another sum, as a share of it; and in nats how far two values
of one log-probability in one answer may be apart."""

ABOVE = 1e-3
"""A log-probability above 0 by less is rounding."""

NO_LOGPROBS = (
    "they are no log-probabilities, as of a server that tells raw logits: start it so that it tells log-probabilities "
    "(vLLM: --logprobs-mode raw_logprobs)"
)
"""What is said of numbers that cannot be log-probabilities."""


class Unusable(ValueError):
    """What came in place of the list of one state; the message is what came, in words."""


class NoLogprobs(ValueError):
    """Numbers that cannot be log-probabilities; the message is what came, and :data:`NO_LOGPROBS`."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a served model says of n states of one sequence.

    Attributes:
        top_ids: int32 [n, K], its most probable tokens in rank order; equal ones by id.
        top_logprobs: float32 [n, K], over its whole vocabulary.
        logprob: float32 [n], of the sampled tokens.
        faults: by state what came in place of a list; there all ids are −1 and all numbers NaN.
    """

    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    logprob: NDArray[np.float32]
    faults: Mapping[int, str] = field(default_factory=dict)

    def mended(self, again: Told) -> Told:
        """This answer, with what another one to the same question says of the states that are unknown in it."""
        lacking = np.isin(np.arange(len(self.logprob)), list(self.faults))
        return Told(
            np.where(lacking[:, None], again.top_ids, self.top_ids),
            np.where(lacking[:, None], again.top_logprobs, self.top_logprobs),
            np.where(lacking, again.logprob, self.logprob),
            {state: again.faults[state] for state in self.faults if state in again.faults},
        )


State = tuple[Sequence[tuple[int, float]], float]
"""A state's top list as (id, log-probability), and the sampled token's log-probability."""


def read_states(read: Callable[[int], State], places: Sequence[int], ids: Sequence[int], k: int) -> Told:
    """The states at some places of ``ids``.

    Args:
        read: for a place what the answer holds there; what it raises, other than :class:`Unusable`, is a layout that
            is not the server's.
    """
    top_ids = np.full((len(places), k), NOTHING, dtype=np.int32)
    top_logprobs = np.full((len(places), k), np.nan, dtype=np.float32)
    logprob = np.full(len(places), np.nan, dtype=np.float32)
    faults = {}
    for state, place in enumerate(places):
        try:
            top, own = read(place)
            _check(top, own, ids[place], k)
        except Unusable as came:
            faults[state] = str(came)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            faults[state] = f"no {error}" if isinstance(error, KeyError) else f"of another layout: {error}"
        else:
            ordered = sorted(top, key=lambda entry: (-entry[1], entry[0]))
            top_ids[state] = [token for token, _ in ordered]
            top_logprobs[state] = [value for _, value in ordered]
            logprob[state] = own
    return Told(top_ids, top_logprobs, logprob, faults)


def _check(top: Sequence[tuple[int, float]], own: float, token: int, k: int) -> None:
    """Refuse what is no list of the top k beside the value of the sampled token."""
    values = dict(top)
    if len(top) != k:
        raise Unusable(f"{len(top)} ids in place of {k}")
    if len(values) != k:
        raise Unusable("one id twice")
    least = min(values.values())
    if max(values.values()) == -math.inf:
        raise Unusable("no id that is possible")
    if token in values and values[token] != own and not abs(values[token] - own) <= ROUNDING:
        raise Unusable(f"two log-probabilities of id {token}, {values[token]:.4g} and {own:.4g}")
    if token not in values and own > least + ROUNDING:
        raise Unusable(f"no id {token}, which is more probable than the last of the list")


def logprob_of(value: Any) -> float:
    """A log-probability of an answer.

    Raises:
        Unusable: it is null, not finite, or no number. A number above 0 passes: see :func:`misnormalised`.
    """
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if math.isnan(number) or number == math.inf:
        raise Unusable(f"{_shown(value)} in place of a log-probability")
    return -math.inf if number <= CLAMPED else number


def id_of(value: Any) -> int:
    """A token's id in an answer, as a number or its digits.

    Raises:
        Unusable: it is none.
    """
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12
    token = int(value) if digits else value
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
        raise Unusable(f"{_shown(value)} in place of an id")
    return token


def list_of(value: Any, kind: type) -> Any:
    """A state's entry, of the type that the layout has.

    Raises:
        Unusable: it is of another, null for instance.
    """
    if not isinstance(value, kind):
        raise Unusable(f"{_shown(value)} in place of a list")
    return value


def misnormalised(told: Told, width: int) -> tuple[int, str] | None:
    """The first state whose numbers cannot be log-probabilities over ``width`` ids or fewer, and why; None: there is
    none.

    The k most probable of V ids have at least k/V of the probability, and at most all of it.
    """
    known = ~np.isin(np.arange(len(told.logprob)), list(told.faults))
    highest = np.maximum(told.top_logprobs.max(1, initial=-np.inf), told.logprob)
    # Numbers far above 0 overflow to inf, which is above 1 as well.
    with np.errstate(over="ignore"):
        sums = np.exp(told.top_logprobs.astype(np.float64)).sum(1)
    k = told.top_ids.shape[1]
    least = k / max(width, k, int(told.top_ids.max(initial=0)) + 1)
    wrong = known & ((highest > ABOVE) | (sums > 1 + ROUNDING) | (sums < least * (1 - ROUNDING)))
    if not wrong.any():
        return None
    state = int(np.flatnonzero(wrong)[0])
    if highest[state] > ABOVE:
        return state, f"a log-probability is {highest[state]:.4g}, above 0"
    bound = "the most possible is 1" if sums[state] > 1 else f"the least possible is {least:.2g}"
    return state, f"the {k} most probable tokens have a probability of {sums[state]:.2g}, {bound}"


def _shown(value: Any) -> str:
    """A value as JSON, cut to a few characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):  # digits beyond what Python converts
        text = type(value).__name__
    return text if len(text) <= 24 else f"{text[:23]}…"
