"""The registry of per-state metrics: each is declared once, with its unit, its source and its function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from opd_probe.metrics.view import Bools, Floats, TopView

MetricFunction = Callable[[TopView], Floats]
Unknown = Callable[[TopView], Bools]

Range = tuple[float, float]
"""The least and the greatest value that there can be, infinite where there is no bound."""

REAL: Range = (-math.inf, math.inf)
UNIT_RANGES: dict[str, Range] = {
    "share": (0.0, 1.0),
    "probability": (0.0, 1.0),
    "nats": (0.0, math.inf),
    "tokens": (0.0, math.inf),
    "perplexity": (1.0, math.inf),
}
"""What a quantity of a unit lies in, unless it is declared otherwise."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity with one value per state.

    Attributes:
        name: the column's name.
        unit: ``"nats"``, ``"probability"``, ``"share"`` or ``"tokens"``.
        source: where the definition comes from; equations are those of arXiv 2604.13016.
        definition: the formula in words.
        needs: the trace columns that it reads.
        range: what a value lies in, and so its mean and the interval of that.
        depends_on_k: whether the value changes with k.
        summary: ``"mean"``, or ``"quantiles"`` for counts of tokens (median, 90th percentile, share beyond K).
        trivial_at_one: whether a single token makes it 0 whatever the models say.
        function: the view of a block of n states in, [n] out; NaN where it is undefined.
        selected: for a metric that a served teacher leaves unknown at some states, and not at random: where that is so,
            [n]. A mean over the other states would be one over states on which the models agree, so there is none.
    """

    name: str
    unit: str
    source: str
    definition: str
    needs: tuple[str, ...]
    function: MetricFunction
    range: Range
    depends_on_k: bool = True
    summary: str = "mean"
    trivial_at_one: bool = False
    selected: Unknown | None = None


METRICS: dict[str, Metric] = {}
"""Every registered metric by name, in the order of the tables."""


def register(
    name: str,
    *,
    unit: str,
    source: str,
    definition: str,
    needs: tuple[str, ...],
    range: Range | None = None,
    depends_on_k: bool = True,
    summary: str = "mean",
    trivial_at_one: bool = False,
    selected: Unknown | None = None,
) -> Callable[[MetricFunction], MetricFunction]:
    """Enter a function into :data:`METRICS` under ``name``; the range is that of the unit unless given."""

    def enter(function: MetricFunction) -> MetricFunction:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered twice")
        METRICS[name] = Metric(
            name,
            unit,
            source,
            definition,
            needs,
            function,
            range or UNIT_RANGES[unit],
            depends_on_k,
            summary,
            trivial_at_one,
            selected,
        )
        return function

    return enter
