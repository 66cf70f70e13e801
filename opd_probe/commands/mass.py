"""``opd-probe mass``: how much of both distributions few tokens hold."""

from __future__ import annotations

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
            rows = [json_row(row) for row in totals]
            return Result(rows, shown_columns(MASS_COLUMNS, rows), gathered.format, files)
        return Result([json_row(row) for row in records(table)], (), gathered.format, files)
