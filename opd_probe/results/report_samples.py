"""The samples of a report: the same prompt's responses by step, as many as a page of so many bytes holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_probe.curves.tokens import EXTREMES, spread_choice
from opd_probe.results.courses import Judged
from opd_probe.results.report_packing import Group, PackedSamples
from opd_probe.results.report_states import (
    LIST_STATES,
    MAX_UNITS,
    PAGE_STATES,
    ROOM,
    Shown,
    Unit,
    ranked_units,
    shown_states,
    states_of,
    units_by_trace,
)

KINDS = {
    "reverse_kl": "states of the largest reverse KL",
    "lowest_reward": "tokens that the teacher refuses most",
    "highest_reward": "tokens that the teacher welcomes most",
}


def chosen_units(found: Sequence[Judged]) -> list[tuple[list[dict[Unit, int]], list[Unit]]]:
    """For each run and teacher its responses by unit, and the units that are shown: evenly spaced in rank from where
    the models are furthest apart to where they are nearest, and fewer where all are many states."""
    known = [units_by_trace(one) for one in found]
    ranked = [ranked_units(one, by_trace) for one, by_trace in zip(found, known, strict=True)]
    most = MAX_UNITS
    while True:
        units = [[there[place] for place in spread_choice(values, most)] for there, values in ranked]
        total = sum(states_of(*three) for three in zip(found, known, units, strict=True))
        if total <= PAGE_STATES or most == 1:
            return list(zip(known, units, strict=True))
        most = max(1, min(most - 1, most * PAGE_STATES // total))


def shown_of(found: Sequence[Judged]) -> list[tuple[list[Unit], list[Shown]]]:
    """The units that a page shows of each run and teacher, and their states by trace."""
    chosen = chosen_units(found)
    responses = sum(len(units) * len(by_trace) for by_trace, units in chosen)
    listed = max(1, LIST_STATES // (len(EXTREMES) * max(1, responses)))
    return [
        (
            units,
            [
                shown_states(measured.trace, known, units, measured.settings.k, listed)
                for measured, known in zip(one.traces, by_trace, strict=True)
            ],
        )
        for one, (by_trace, units) in zip(found, chosen, strict=True)
    ]


def samples(groups: Sequence[Group], names: Sequence[str], budget: int) -> tuple[dict[str, Any] | None, list[str]]:
    """What the script reads, in JSON types and at most so many bytes; and what had to be left out.

    Args:
        names: of the groups.
    """
    share, left_out = 1.0, []
    while True:
        packed = PackedSamples(groups, share)
        if packed.size <= budget or packed.smallest:
            break
        share *= min(0.9, 0.95 * budget / packed.size)
    if packed.size > budget:
        return None, ["Samples: not one response of each run and step fits into the page's size."]
    if share < 1.0:
        shown, of = (sum(count) for count in zip(*packed.counts, strict=True))
        left_out.append(f"Samples: {shown} of {of} responses for each step, so that the page stays under 5 MB.")
    dropped = [name for name in packed.optional if not packed.add_quantity(name, budget)]
    if dropped:
        titles = ", ".join(packed.scale(name)["title"] for name in dropped)
        left_out.append(f"Samples: without {titles}, so that the page stays under 5 MB.")
    return packed.document(names), left_out


def note(packed: Mapping[str, Any], text: bool) -> str:
    """What the section shows, in a few sentences."""
    shown = max((len(group["units"]) for group in packed["groups"]), default=0)
    words = (
        f"Up to {shown} responses of each run, evenly spaced in rank from where the models are furthest apart at the "
        f"last step to where they are nearest; of each, at most {ROOM:,} states. "
    )
    if text:
        words += (
            "Point at a token, or walk with the arrow keys; click or press Enter to keep one. Both models' whole top "
            "lists are here at the most extreme states alone: those with a line below. "
        )
    else:
        words += "Without words: a block stands for each token. "
    return words + "Values of single states are rounded to about 5 %."
