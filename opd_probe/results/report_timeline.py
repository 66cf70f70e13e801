"""The timeline of the overlap in a report: which tokens came in and went, by kind and one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from opd_probe.curves.intervals import Floats
from opd_probe.curves.timeline import OverlapTimeline
from opd_probe.digits import digits, true_minus
from opd_probe.models.decoding import Decoder
from opd_probe.results.courses import Judged
from opd_probe.results.report_curves import Axis
from opd_probe.results.token_kinds import KINDS, kind_of

TOP = 20
"""Tokens of each table."""


def timeline_section(
    one: Judged, index: int, name: str, found: OverlapTimeline, decoder: Decoder, specials: set[int], text: bool
) -> dict[str, Any]:
    """What the page shows of one run and teacher.

    Args:
        index, name: of its series.
        text: whether tokens may be named; else the kinds alone are shown.
    """
    tokens = np.flatnonzero(found.present.any(0) | found.entered.any(0) | found.left.any(0))
    kinds = {int(token): kind_of(int(token), decoder, specials) for token in tokens}
    by_kind = {kind: np.array([t for t in kinds if kinds[t] == kind], dtype=np.int64) for kind in KINDS}
    there = [kind for kind in KINDS if len(by_kind[kind])]
    axis = Axis.of([one])
    n = np.array(found.n, dtype=np.float64)[:, None]
    rates = found.present / np.maximum(n, 1)
    panel = {
        "name": f"timeline-{index}", "title": "Tokens of the overlap at a state, by kind", "unit": "tokens per state",
        "reading": f"together k = {one.traces[0].settings.k} times the overlap ratio", "note": "", "xs": axis.xs,
        "labels": axis.labels, "names": [KINDS[kind] for kind in there], "limits": (0.0, None), "include": (0.0,),
        "band": None, "paths": [],
        "series": [_series(place, rates[:, by_kind[kind]].sum(1), axis) for place, kind in enumerate(there)],
    }  # fmt: skip
    sides = (("Entering", "entered"), ("Leaving", "left")) if text else ()
    return {
        "index": index, "name": name, "note": _note(one, found), "chart": panel,
        "kind_columns": ["at first", "at last", "entered", "left", "mass at first", "at last"],
        "kinds": [_kind_row(kind, by_kind[kind], found) for kind in there],
        "tables": [_table(caption, side, one, found, kinds, decoder) for caption, side in sides],
    }  # fmt: skip


def _note(one: Judged, found: OverlapTimeline) -> str:
    k = one.traces[0].settings.k
    if found.paired:
        how = (
            "All checkpoints were measured at the same states, so that each state is compared with itself: a token has "
            "entered where it is in the overlap now and was not at the first checkpoint, and left where it was and is "
            "not. "
        )
    else:
        how = (
            "Each checkpoint has states of its own, so that rates are compared: how often a token is in the overlap "
            "now and at the first checkpoint. One fixed file (--rollouts) compares each state with itself. "
        )
    return f"{how}The overlap is of both top {k}. Rates are per 1,000 states; mass is the student's probability."


def _series(place: int, values: Floats, axis: Axis) -> dict[str, Any]:
    known = [float(value) for value in values]
    return {
        "index": place, "places": axis.places[0], "values": known, "low": [None] * len(known),
        "high": [None] * len(known), "texts": [true_minus(digits(value)[0]) for value in known],
    }  # fmt: skip


def _per_1000(found: OverlapTimeline, values: Floats) -> Floats:
    """Of the last checkpoint: states to rates; what is a rate already stays one."""
    rates: Floats = 1000 * values / (max(found.n[-1], 1) if found.paired else 1)
    return rates


def _number(value: float) -> str:
    return true_minus(f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def _kind_row(kind: str, tokens: np.ndarray[Any, Any], found: OverlapTimeline) -> dict[str, Any]:
    present = [1000 * found.present[at, tokens].sum() / max(found.n[at], 1) for at in (0, -1)]
    mass = [found.mass[at, tokens].sum() / max(found.n[at], 1) for at in (0, -1)]
    changes = [_per_1000(found, values[-1, tokens]).sum() for values in (found.entered, found.left)]
    return {"title": KINDS[kind], "cells": [_number(v) for v in (*present, *changes)] + [f"{m:.3f}" for m in mass]}


def _table(
    caption: str, side: str, one: Judged, found: OverlapTimeline, kinds: dict[int, str], decoder: Decoder
) -> dict[str, Any]:
    """The tokens of which most states changed from the first checkpoint to the last."""
    changed, mass = getattr(found, side), getattr(found, f"{side}_mass")
    order = [int(token) for token in np.argsort(-changed[-1], kind="stable")[:TOP] if changed[-1, token] > 0]
    return {
        "caption": f"{caption}, most states first",
        "columns": ["per 1,000", "first at step", "half by step", "mass per 1,000"],
        "rows": [
            {
                "id": token,
                "token": decoder.label(token),
                "kind": kinds[token],
                "cells": [
                    _number(float(_per_1000(found, changed[-1, token]))),
                    _step(one, first_at(changed[:, token], 0.0)),
                    _step(one, first_at(changed[:, token], 0.5 * float(changed[-1, token]))),
                    _number(float(_per_1000(found, mass[-1, token]))),
                ],
                "strip": _strip(one, found, token),
            }
            for token in order
        ],
    }


def first_at(changed: Floats, above: float) -> int:
    """The first checkpoint at which the change of a token is larger than 0 and at least ``above``."""
    return int(np.flatnonzero((changed > 0) & (changed >= above))[0])


def _step(one: Judged, place: int) -> str:
    step = one.course.steps[place]
    return f"trace {place + 1}" if step is None else str(step)


def _strip(one: Judged, found: OverlapTimeline, token: int) -> list[dict[str, Any]]:
    """For each checkpoint the share of states at which a token is in the overlap, shaded against its largest."""
    shares = found.present[:, token] / np.maximum(found.n, 1)
    largest = float(shares.max()) or 1.0
    return [
        {"shade": round(75 * float(share) / largest), "says": f"step {_step(one, place)}: {share:.1%} of states"}
        for place, share in enumerate(shares)
    ]
