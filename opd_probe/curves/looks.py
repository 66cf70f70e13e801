"""When a replay may look at its intervals, and how much wider these are so that looking does no harm.

A replay that stops as soon as an interval is narrow enough looks at it again and again, and each look is another
chance to be wrong, above all where few prompts hold most of a quantity: until one of them is seen, the interval is
narrow and in the wrong place. So the looks are fixed beforehand, at numbers of prompts that grow by the same factor,
and of J looks the interval of each is of level 1 − 0.05 / J: whichever look one stops at, for whatever reason, the
interval there misses what it is of in 5 % of replays at most, as far as each of them is valid (Bonferroni). The first
look is late enough for the intervals to be. ``benchmarks/stopping.py`` measures what is held, and by narrower ones.
"""

from __future__ import annotations

from math import ceil

from opd_probe.curves.intervals import LEVEL
from opd_probe.trace import Trace

FIRST_LOOK = 40
"""Prompts of the first look."""

GROWTH = 1.25
"""Prompts of a look over those of the look before."""


def look_sizes(prompts: int, first: int = FIRST_LOOK, growth: float = GROWTH) -> tuple[int, ...]:
    """Numbers of prompts at which a replay of ``prompts`` looks, ascending; the last is all of them.

    A look that all prompts exceed by little is left out: what would be saved is less than what looking costs.
    """
    sizes: list[int] = []
    size = first
    while size * growth**0.5 < prompts:
        sizes.append(size)
        size = ceil(size * growth)
    return (*sizes, prompts)


def look_level(looks: int) -> float:
    """The level of the interval at each of so many looks."""
    return 1 - (1 - LEVEL) / looks


def level_of(trace: Trace, resamples: int = 1) -> float | None:
    """The level of the intervals of a trace: 95 %, above it where its replay stopped; None for none (0 resamples)."""
    if not resamples:
        return None
    return LEVEL if trace.stopped is None else float(trace.stopped["level"])
