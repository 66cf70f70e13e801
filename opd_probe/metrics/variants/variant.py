"""The form of a variant: per state, what it adds to a quantity's numerator and to its denominator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from opd_probe.metrics.registry import UNIT_RANGES, Range
from opd_probe.metrics.view import Bools, Floats, TopView

CHUNK = 1024
"""Positions of a chunk of thunlp/OPD."""

Parts = tuple[Floats, Floats]
"""[n] each: numerators and weights of n states. A quantity is the sum of the one over the sum of the other; a state
with weight 0 or a numerator of NaN does not count."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One curve of a peer.

    Attributes:
        name: as the peer logs it.
        unit: ``"nats"``, ``"probability"`` or ``"share"``.
        headline: whether tables on the screen and figures show it; files have all.
        reduce: how states become one number.
        declared_range: what the value lies in; None: what the unit says.
    """

    name: str
    unit: str
    headline: bool = False
    reduce: Literal["mean", "min", "max"] = "mean"
    declared_range: Range | None = None

    @property
    def range(self) -> Range:
        """What the value lies in."""
        return self.declared_range or UNIT_RANGES[self.unit]


@dataclass(frozen=True, slots=True)
class Variant:
    """A peer's definitions.

    Attributes:
        name: ``verl``, ``fireworks``, ``thunlp:only_stu:student_p``, ….
        source: where the definitions were read.
        quantities: in the order of the tables.
        function: a block of states in, the parts of every quantity out. The block has ``state_index`` and
            ``state_count`` beside the columns of a trace: the 0-based number of a state within its rollout, and how
            many the rollout has.
        chunked: whether the peer logs every mean again for each 1,024 positions.
    """

    name: str
    source: str
    quantities: tuple[Quantity, ...]
    function: Callable[[TopView], Mapping[str, Parts]]
    chunked: bool = False


def per_state(values: Floats, where: Bools | None = None) -> Parts:
    """The parts of a mean over the states at which ``where`` holds."""
    weights = np.ones(len(values)) if where is None else where.astype(np.float64)
    return np.where(weights > 0, values, np.nan), weights


def per_token(values: Floats, support: Bools) -> Parts:
    """The parts of a mean over all tokens of a support, [n, m], whatever state they belong to."""
    return np.where(support, values, 0.0).sum(1), support.sum(1).astype(np.float64)


def product(weights: Floats, values: Floats) -> Floats:
    """``weights · values`` with 0 · anything = 0, as 0 log 0."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0.0, weights * values)
