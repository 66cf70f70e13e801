"""``opd-probe show``: where a trace comes from and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_probe.curves import summarize
from opd_probe.curves.planning import MAIN, WIDTHS, prompts_needed
from opd_probe.options.settings import parse_options, settle
from opd_probe.results.tables import json_row
from opd_probe.runs.stored import measured_of, warn_of, warn_of_states
from opd_probe.trace import read_trace


def show(
    trace: str, *, k: int | None = None, average: str | None = None, precision: Sequence[str] | None = None
) -> dict[str, Any]:
    """A trace's provenance and summary, and how many prompts a precision takes, in JSON types.

    Without ``k`` the default k is lowered to the K of a shallower trace.

    Args:
        precision: half-widths, as of ``--precision`` elsewhere; None: some of the main metrics.

    Raises:
        MissingError, TraceError, InputError: no such trace, or a k that it cannot answer for.
    """
    stored = read_trace(trace)
    warn_of(stored)
    settings = settle(parse_options({"k": k, "average": average, "precision": precision}), None, where=trace)
    used = settings.k if k is not None else min(settings.k, stored.K)
    row = summarize(stored, used, average=settings.average, seed=settings.seed)
    measured = measured_of(stored, Path(trace), settings)
    warn_of_states([measured])
    widths: dict[str, Sequence[float]] = dict.fromkeys(MAIN, WIDTHS)
    asked = widths if settings.precision is None else {name: [width] for name, width in settings.precision.items()}
    needed = prompts_needed(stored, asked, used, average=settings.average)
    said = {name: value for name, value in measured.labels.items() if name != "states"}
    summary = json_row(row)
    return {"path": str(trace), **said, "provenance": stored.provenance, "summary": summary, "prompts_needed": needed}
