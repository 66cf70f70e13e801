"""``opd-probe show``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import quieten_libraries
from opd_probe.imports import uncollected


def show(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)],
    k: options.K = None,
    average: options.AverageOption = None,
    format: options.FormatOption = None,
) -> None:
    """Print where a trace comes from and what it says."""
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.show import show as describe

    shown = describe(trace, k=k, average=str(average) if average else None)
    if format == options.Format.json:
        printing.print_json(shown)
    else:
        rows = [{"name": name, "value": value} for name, value in printing.flatten(shown)]
        printing.print_rows(rows, ("name", "value"), str(format) if format else "table")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("show")(show)
