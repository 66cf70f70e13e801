"""``opd-probe align``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from opd_probe.cli.options import VariantOption
from opd_probe.cli.request import takes_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request


class Axis(StrEnum):
    """What the curves run over."""

    step = "step"
    position = "position"
    depth = "depth"


@takes_request
def align(
    request: Request,
    x: Annotated[
        Axis,
        typer.Option(
            "--x", help="Training step, position, or depth: quantiles of the reward and its signal along the response."
        ),
    ] = Axis.step,
    bins: Annotated[int, typer.Option("--bins", min=1, help="Bins of --x position and depth.")] = 20,
    variant: VariantOption = None,
) -> None:
    """Alignment curves: overlap ratio and advantage, entropies and their gap, overlap masses, divergences.

    Writes DIR/align.csv, DIR/align.pdf and .png; with --x depth DIR/depth.csv, depth-signal.csv, depth.pdf and .png.
    Traces that exist are re-used.

    Example: opd-probe align --traces opd-probe-out --x position
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.align import align as run

    finish(run(request, progress, x=x.value, bins=bins, variant=variant))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("align")(align)
