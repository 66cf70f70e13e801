"""One statement of the paper, and the rule that decides whether it holds in miniature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from opd_probe.lab.reading import Tables, Value

__all__ = ["Claim"]

Comparison = Literal["above", "below", "at least", "at most"]
Over = Literal["every seed", "the mean over seeds"]

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "above": lambda value, bound: value > bound,
    "below": lambda value, bound: value < bound,
    "at least": lambda value, bound: value >= bound,
    "at most": lambda value, bound: value <= bound,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper and its rule: ``quantity`` compared with ``bound``, on every seed or on their mean.

    Attributes:
        figure: of the paper.
        statement: what the paper's figure shows.
        measure: how the quantity is measured in the lab.
        quantity: the tables of a seed in, a value with its interval out.
    """

    name: str
    figure: str
    statement: str
    measure: str
    quantity: Callable[[Tables], Value]
    comparison: Comparison
    bound: float
    over: Over = "every seed"

    def keeps(self, value: float) -> bool:
        """Whether a value keeps the bound; NaN does not."""
        return _COMPARISONS[self.comparison](value, self.bound)

    def holds(self, values: Sequence[float]) -> bool:
        """Whether the statement holds, given the value of every seed."""
        if self.over == "every seed":
            return all(self.keeps(value) for value in values)
        return self.keeps(fmean(values))
