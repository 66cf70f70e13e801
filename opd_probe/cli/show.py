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
    precision: options.WidthOption = None,
    format: options.FormatOption = None,
) -> None:
    """Print where a trace comes from and what it says, and how many prompts a precision takes."""
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.show import show as describe

    shown = describe(trace, k=k, average=str(average) if average else None, precision=precision or None)
    if format == options.Format.json:
        printing.print_json(shown)
    else:
        needed = [] if format == options.Format.csv else shown.pop("prompts_needed")
        rows = [{"name": name, "value": value} for name, value in printing.flatten(shown)]
        printing.print_rows(rows, ("name", "value"), str(format) if format else "table")
        if needed:
            printing.write("\n95 % interval of ± width, and the prompts that it takes:\n")
            printing.print_rows(needed, tuple(needed[0]), "table")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("show")(show)
