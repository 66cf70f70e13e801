"""The registry of per-state metrics: each is declared once, with its unit, its source and its function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from opd_probe.metrics.view import Bools, Floats, TopView

MetricFunction = Callable[[TopView], Floats]
SideFunction = Callable[[TopView, str], Floats]
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


SIDES = {"student": "p", "teacher": "q"}
"""Both models, each with the letter of its distribution."""

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


def register_both(
    name: str, *, unit: str, source: str, definition: str, needs: str, depends_on_k: bool = True
) -> Callable[[SideFunction], SideFunction]:
    """Enter a function of a view and a side twice, for the student and for the teacher.

    In ``name``, ``definition`` and ``needs`` (one column), ``{side}`` and ``{letter}`` stand for an entry of
    :data:`SIDES`.
    """

    def enter(function: SideFunction) -> SideFunction:
        for side, letter in SIDES.items():
            own, words, column = (text.format(side=side, letter=letter) for text in (name, definition, needs))
            entered = register(
                own, unit=unit, source=source, definition=words, needs=(column,), depends_on_k=depends_on_k
            )
            entered(_of_side(function, side))
        return function

    return enter


def _of_side(function: SideFunction, side: str) -> MetricFunction:
    return lambda view: function(view, side)


def register_stored(name: str, *, unit: str, source: str, definition: str, range: Range | None = None) -> None:
    """Enter a column of the trace that is a metric as it stands."""
    register(name, unit=unit, source=source, definition=definition, needs=(name,), range=range, depends_on_k=False)(
        lambda view: view.scalar(name)
    )
