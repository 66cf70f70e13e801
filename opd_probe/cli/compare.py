"""``opd-probe compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected

_PLACE = "a trace, a directory with the traces of one run, or a run whose traces are in --out"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The first side: {_PLACE}.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help=f"The second side: {_PLACE}.", show_default=False)],
    k: options.K = None,
    average: options.AverageOption = None,
    by: options.By = None,
    seed: options.Seed = None,
    out: options.Out = None,
    format: options.FormatOption = None,
) -> None:
    """Paired differences B - A of every metric, with intervals over the same prompts.

    Only prompts in both are compared. Two runs are compared step by step. Writes DIR/compare.csv, .pdf and .png.

    Example: opd-probe compare out/traces/a/teacher/step-0.parquet out/traces/a/teacher/step-100.parquet
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.compare import compare as run

    given = {"k": k, "average": str(average) if average else None, "seed": seed}
    finish(run(a, b, progress, options=given, by=by, out=out, format=str(format) if format else "table"))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("compare")(compare)
