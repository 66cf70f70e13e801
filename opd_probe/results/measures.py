"""The tables of a command: the traces that it gathered, summarised, or as curves, one below the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from opd_probe.curves import diagnose, mass_curve, position_curve
from opd_probe.curves.bounds import bounds_row, is_served
from opd_probe.curves.correlations import correlation_columns
from opd_probe.curves.remarks import list_remarks
from opd_probe.curves.summary import summary_row
from opd_probe.errors import warn
from opd_probe.progress import Progress
from opd_probe.results.tables import as_table, sort_key
from opd_probe.runs.stored import Measured

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Gathered:
    """The traces of a command, in the order of their rows, and where its results go."""

    measured: list[Measured]
    out: Path
    format: str
    progress: Progress


def in_order(measured: Iterable[Measured]) -> list[Measured]:
    """By run, teacher and step."""
    return sorted(measured, key=lambda m: sort_key(m.key))


def interval_options(measured: Measured) -> dict[str, Any]:
    """How the intervals of a trace are made."""
    return {"average": measured.settings.average, "seed": measured.settings.seed}


def summaries(gathered: Gathered, *, whole: bool = False) -> list[dict[str, Any]]:
    """One row per trace: its names and its summary.

    Args:
        whole: with the quantities of whole traces and the correlations over rollouts too, which read the trace a few
            more times.
    """
    rows = []
    gathered.progress.begin("summarise")
    for done, measured in enumerate(gathered.measured):
        gathered.progress.update(done, len(gathered.measured))
        row = summary_row(measured.trace, measured.settings.k, average=measured.settings.average)
        if whole:
            row |= diagnose(measured.trace, seed=measured.settings.seed) | correlation_columns(measured.trace)
            if is_served(measured.trace):
                row |= bounds_row(measured.trace, average=measured.settings.average)
        k = row.pop("k")
        # The teacher's own accuracy is not part of a trace: null here, see opd_probe.gap_recovery.
        recovery = {"gap_recovery": NAN, "gap_recovery_lo": NAN, "gap_recovery_hi": NAN, "gap_recovery_n": 0}
        names = {**measured.key, "k": k, **measured.labels}
        rows.append({**names, **row, **recovery})
    for remark in list_remarks(rows):
        warn(remark)
    return rows


def curves(
    gathered: Gathered, task: str, curve: Callable[[Measured], pd.DataFrame], *, k: bool = False
) -> pd.DataFrame:
    """The curve of every trace, one below the other, named by run, step and teacher."""
    parts = []
    gathered.progress.begin(task)
    for done, measured in enumerate(gathered.measured):
        gathered.progress.update(done, len(gathered.measured))
        names = {**measured.key, **({"k": measured.settings.k} if k else {}), **measured.labels}
        part = curve(measured)
        for place, (name, value) in enumerate(names.items()):
            part.insert(place, name, value)
        parts.append(part)
    return as_table(pd.concat(parts, ignore_index=True))


def position_curves(gathered: Gathered, bins: int = 20) -> pd.DataFrame:
    """One row per trace and bin of positions."""
    return curves(
        gathered, "positions", lambda m: position_curve(m.trace, m.settings.k, bins=bins, **interval_options(m)), k=True
    )


def mass_curves(gathered: Gathered) -> pd.DataFrame:
    """One row per trace and rank."""
    return curves(gathered, "mass", lambda m: mass_curve(m.trace, **interval_options(m)))


def mass_table(gathered: Gathered, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trace and rank; what holds for all ranks (k for a share of the mass) repeats in each."""
    table = mass_curves(gathered)
    wanted = [name for name in rows[0] if "_k_for_" in name or name in ("n_prompts", "n_rollouts", "n_states")]
    ranks = [m.trace.K for m in gathered.measured]
    for name in wanted:
        table[name] = [row[name] for row, times in zip(rows, ranks, strict=True) for _ in range(times)]
    return table
