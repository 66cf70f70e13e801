"""``opd-probe losses``: what each loss would see at the states of one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from opd_probe.results.tables import as_table, json_row, present, records
from opd_probe.runs.stored import find_trace, warn_of_states

COLUMNS = (
    "support", "k", "form", "clamp", "batch_cosine", "student_mass", "teacher_mass", "loss", "gradient_norm", "cosine",
    "variance", "variance_with_baseline",
)  # fmt: skip


def losses(
    trace: str,
    progress: Progress,
    *,
    options: Mapping[str, Any],
    ks: Sequence[int] = (),
    clamps: Sequence[str] = (),
    out: str | None = None,
    format: str = "table",
) -> Result:
    """A row per support, k, form and clamp: ``losses.csv`` and a figure. See :func:`opd_probe.losses`.

    Args:
        trace: a trace, or a directory that holds one.
        options: ``average`` as for the other commands.
        ks, clamps: none: the defaults.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    directory = output_path(out or DEFAULT_OUT)
    check_writable(directory)
    measured = find_trace(trace, parse_options(options), what="losses TRACE")
    warn_of_states([measured])
    progress.begin("losses")
    table = loss_table(
        measured.trace, tuple(ks) or None, clamps=tuple(clamps) or CLAMPS, average=measured.settings.average
    )
    named = as_table(table.assign(**measured.key, **measured.labels, n_states=measured.trace.n_states))
    first = [*measured.key, *measured.labels, "n_states"]
    named = named[[*first, *(name for name in named if name not in first)]]
    files = [write_csv(named, directory / "losses.csv")]
    files += draw_figure(lambda: plots.plot_losses(named), directory / "losses")
    rows = [json_row(row) for row in records(named)]
    if format == "table":  # what a clamp changes is for files, unless it was asked for
        rows = [_shown(row) for row in rows if clamps or row["clamp"] == "none"]
    return Result(rows, present(COLUMNS, rows), format, tuple(files))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for eyes: where a value is not known, both bounds of it."""
    found = dict(row)
    for name in COLUMNS:
        least = row.get(f"{name}_least")
        if row.get(name) is None and least is not None:
            most = row.get(f"{name}_most")
            found[name] = f"≥ {digits(least)[0]}" if most is None else f"{digits(least)[0]} … {digits(most)[0]}"
    return found
