"""``opd-probe overlap``: overlap and everything beside it, by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from opd_probe import plots
from opd_probe.commands.gathering import NAMES, by_k, finish, gather, write
from opd_probe.commands.result import Result
from opd_probe.commands.variant import as_variant
from opd_probe.curves import join_training_log
from opd_probe.errors import InputError
from opd_probe.options.naming import user_path
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.kinds import TRAINING_SHEET
from opd_probe.results.measures import summaries
from opd_probe.results.tables import as_table
from opd_probe.runs.log_files import QUANTITIES, read_log
from opd_probe.runs.logs import log_files, training_log, with_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAP_COLUMNS = (
    *NAMES, "overlap_ratio", "accuracy", "student_overlap_mass", "reverse_kl", "overlap_advantage", "entropy_gap",
    "n_states",
)  # fmt: skip


def overlap(
    request: Request, progress: Progress, *, training_logs: Sequence[str] = (), variant: str | None = None
) -> Result:
    """Overlap and everything beside it, by checkpoint: ``overlap.csv`` and a figure.

    With training logs (``RUN=FILE`` each, or ``FILE`` for the only run) rows also have what was logged at their step,
    and ``overlap-training`` shows the curves beside every logged step, as a table and as a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    logs = log_files(training_logs)
    if logs and request.by is not None:
        raise InputError("--by and --training-log: a trainer logs whole batches and no groups; leave one of them out")
    if variant is not None:
        return as_variant(request, progress, "overlap", variant, logs)
    for file in logs.values():
        read_log(user_path(file))  # a mistake shows before models run
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        log = training_log(gathered.measured, logs) if logs else pd.DataFrame()
        rows = summaries(gathered, whole=True)
        result = finish(
            gathered, "overlap", with_log(rows, log), (*OVERLAP_COLUMNS, *QUANTITIES), by_k(rows, plots.plot_overlap)
        )
        if not logs:
            return result
        logged = log.dropna(axis="columns", how="all")
        table = as_table(rows)
        known = [name for name in TRAINING_SHEET if name in logged or (name in table and table[name].notna().any())]

        def draw(part: pd.DataFrame) -> Figure:
            joined = join_training_log(part, logged)
            return plots.plot_alignment(joined, metrics=known, title="Overlap and the training log")

        joined = pd.concat([join_training_log(part, logged) for _, part in table.groupby("k", sort=True)])
        files = write(gathered, "overlap-training", joined, by_k(rows, draw))
        return replace(result, files=result.files + files)
