"""``opd-probe mass``."""

from __future__ import annotations

import typer

from opd_probe.cli.options import VariantOption
from opd_probe.cli.request import takes_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request


@takes_request
def mass(request: Request, *, variant: VariantOption = None) -> None:
    """Mass concentration: cumulative mass by rank of both models, and the mass of the overlap set for each k.

    Writes DIR/mass.csv, DIR/mass.pdf and .png. Traces that exist are re-used.

    Example: opd-probe mass --traces opd-probe-out
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.mass import mass as run

    finish(run(request, progress, variant=variant))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("mass")(mass)
