"""``opd-probe report``."""

from __future__ import annotations

import typer

from opd_probe.cli.request import takes_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request


@takes_request
def report(request: Request) -> None:
    """Is it going well? A verdict on each run and teacher with its evidence, curves and responses, as one page.

    Writes DIR/report.html, which needs no network. Traces that exist are re-used.

    Example: opd-probe report --ckpts runs/* --teacher big-model --prompts problems.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.report import report as run

    finish(run(request, progress))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("report")(report)
