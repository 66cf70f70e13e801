"""``opd-probe losses``: what each loss would see at the states of one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from opd_probe import plots
from opd_probe.commands.result import Result
from opd_probe.curves.losses import CLAMPS
from opd_probe.curves.losses import losses as loss_table
from opd_probe.digits import digits
from opd_probe.options.request import DEFAULT_OUT
from opd_probe.options.settings import parse_options
from opd_probe.output import check_writable, output_path
from opd_probe.progress import Progress
from opd_probe.results.files import draw_figure, write_csv
from opd_probe.results.tables import as_table, by_series, json_row, present, records
from opd_probe.runs.stored import Measured, by_group, find_trace, warn_of_states

COLUMNS = (
    "group", "support", "k", "form", "clamp", "batch_cosine", "student_mass", "teacher_mass", "loss", "gradient_norm",
    "cosine", "variance", "variance_with_baseline",
)  # fmt: skip


def losses(
    trace: str,
    progress: Progress,
    *,
    options: Mapping[str, Any],
    ks: Sequence[int] = (),
    clamps: Sequence[str] = (),
    by: str | None = None,
    out: str | None = None,
    format: str = "table",
) -> Result:
    """A row per support, k, form and clamp: ``losses.csv`` and a figure. See :func:`opd_probe.losses`.

    Args:
        trace: a trace, or a directory that holds one.
        options: ``average`` as for the other commands.
        ks, clamps: none: the defaults.
        by: a field whose values are rows, and a figure each, of their own.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    directory = output_path(out or DEFAULT_OUT)
    check_writable(directory)
    measured = find_trace(trace, parse_options(options), what="losses TRACE")
    warn_of_states([measured])
    progress.begin("losses")
    tables = [_table(one, ks, clamps) for one in by_group([measured], by)]
    whole = pd.concat(tables, ignore_index=True)
    files = [write_csv(whole, directory / "losses.csv")]
    for number, table in enumerate(tables, 1):
        name = "losses" if by is None else f"losses-{number}"
        files += draw_figure(lambda table=table: plots.plot_losses(by_series(table)), directory / name)  # type: ignore[misc]
    rows = [json_row(row) for row in records(whole)]
    if format == "table":  # what a clamp changes is for files, unless it was asked for
        rows = [_shown(row) for row in rows if clamps or row["clamp"] == "none"]
    return Result(rows, present(COLUMNS, rows), format, tuple(files))


def _table(measured: Measured, ks: Sequence[int], clamps: Sequence[str]) -> pd.DataFrame:
    trace, average = measured.trace, measured.settings.average
    table = loss_table(trace, tuple(ks) or None, clamps=tuple(clamps) or CLAMPS, average=average)
    names = {**measured.key, **measured.labels, "n_states": trace.n_states}
    named = as_table(table.assign(**names))
    return named[[*names, *(name for name in named if name not in names)]]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for eyes: where a value is not known, both bounds of it."""
    found = dict(row)
    for name in COLUMNS:
        least = row.get(f"{name}_least")
        if row.get(name) is None and least is not None:
            most = row.get(f"{name}_most")
            found[name] = f"≥ {digits(least)[0]}" if most is None else f"{digits(least)[0]} … {digits(most)[0]}"
    return found
