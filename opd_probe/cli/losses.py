"""``opd-probe losses``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.session import finish, progress, quieten_libraries


def losses(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)],
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k",
            metavar="N",
            help="Size of the top-k sets; repeat it for several (default: 1, 4, 16 and 64, as far as the trace goes).",
            show_default=False,
        ),
    ] = None,
    clamp: Annotated[
        list[str] | None,
        typer.Option(
            "--clamp",
            metavar="CLAMP",
            help="none; zero (a loss below 0 counts as 0); or verl:MIN:MAX, its least log-probability and largest "
            "loss. Repeat it for several (default: none and verl:-10:10).",
            show_default=False,
        ),
    ] = None,
    average: options.AverageOption = None,
    by: options.By = None,
    out: options.Out = None,
    format: options.FormatOption = None,
) -> None:
    """Which loss would see what: mass, loss, gradient and its direction on every support, for every k.

    One row per support, k, form and clamp, from a stored trace. Writes DIR/losses.csv, .pdf and .png.

    Example: opd-probe losses out/traces/a/teacher/step-100.parquet --k 1 --k 16
    """
    quieten_libraries()
    from opd_probe.commands.losses import losses as run

    result = run(
        trace,
        progress,
        options={"average": str(average) if average else None},
        ks=tuple(k or ()),
        clamps=tuple(clamp or ()),
        by=by,
        out=out,
        format=str(format) if format else "table",
    )
    finish(result)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("losses")(losses)
