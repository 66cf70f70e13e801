"""``opd-probe report``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli.options import TrainingLog
from opd_probe.cli.request import takes_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request

Doctor = Annotated[
    bool,
    typer.Option(
        "--doctor",
        help="With the doctor's findings on the last checkpoint of each run, for which models are loaded.",
        rich_help_panel="Result",
    ),
]
NoText = Annotated[
    bool,
    typer.Option(
        "--no-text",
        help="Without any word of prompts and responses on the page, for runs that may not leave the house.",
        rich_help_panel="Result",
    ),
]


@takes_request
def report(
    request: Request, *, training_log: TrainingLog = None, doctor: Doctor = False, no_text: NoText = False
) -> None:
    """Is it going well? A verdict on each run and teacher with its evidence, curves and responses, as one page.

    Writes DIR/report.html, which needs no network. Traces that exist are re-used.

    Example: opd-probe report --ckpts runs/* --teacher big-model --prompts problems.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.report import report as run

    finish(run(request, progress, training_logs=tuple(training_log or ()), doctor=doctor, text=not no_text))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("report")(report)
