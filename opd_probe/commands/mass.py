"""``opd-probe mass``: how much of both distributions few tokens hold."""

from __future__ import annotations

from typing import Any

from opd_probe import plots
from opd_probe.commands.gathering import NAMES, gather, shown_columns, write
from opd_probe.commands.result import Result
from opd_probe.commands.variant import as_variant
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.measures import mass_table, summaries
from opd_probe.results.tables import as_table, by_series, json_row, records

MASS_COLUMNS = (
    *NAMES, "student_topk_mass", "teacher_topk_mass", "student_overlap_mass", "teacher_overlap_mass",
    "student_k_for_0.97_median", "student_k_for_0.99_median", "teacher_k_for_0.97_median",
)  # fmt: skip


def mass(request: Request, progress: Progress, *, variant: str | None = None) -> Result:
    """Mass concentration, by checkpoint and rank: ``mass.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if variant is not None:
        return as_variant(request, progress, "mass", variant)
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        totals = summaries(gathered)
        table = mass_table(gathered, totals)
        files = write(
            gathered, "mass", table, [("", lambda: plots.plot_mass(by_series(table), by_series(as_table(totals))))]
        )
        if gathered.format == "table":  # K rows for each checkpoint are for files, not for eyes
            depths = [one.trace.K for one in gathered.measured]
            rows = [_counts(json_row(row), depth) for row, depth in zip(totals, depths, strict=True)]
            return Result(rows, shown_columns(MASS_COLUMNS, rows), gathered.format, files)
        return Result([json_row(row) for row in records(table)], (), gathered.format, files)


def _counts(row: dict[str, Any], depth: int) -> dict[str, Any]:
    """A row to look at, with numbers of tokens as whole ones, and ``>K`` where they lie beyond a trace's K."""
    shown = dict(row)
    for name in MASS_COLUMNS:
        base, _, kind = name.rpartition("_")
        if "_k_for_" in name and kind == "median" and row[f"{base}_share_beyond"] is not None:
            shown[name] = f">{depth}" if row[name] is None else f"{row[name]:g}"
    return shown
