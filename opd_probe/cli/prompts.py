"""``opd-probe prompts``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected


def prompts(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A trace of responses to these prompts.", show_default=False)
    ],
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="The prompts that were sampled from.", show_default=False)
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="FILE", help="The .jsonl or .parquet file to write.", show_default=False),
    ],
    count: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many to keep (default: all).", show_default=False)
    ] = None,
    entropy_floor: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="The share of the student's mean entropy over all prompts that the chosen ones keep.",
        ),
    ] = 0.9,
    k: options.K = None,
    format: options.FormatOption = None,
) -> None:
    """Choose prompts by what there is to learn at them, and by how much of it lies where the student can learn it.

    Of prompts that are nearly the same one is kept. The rows are written as they stand in the file, the best first.

    Example: opd-probe prompts out/traces/a/teacher/step-0.parquet --prompts problems.jsonl --count 500 -o best.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.prompts import prompts as run

    asked = {} if k is None else {"k": k}
    result = run(trace, prompts, out, count=count, floor=entropy_floor, format=str(format or "table"), **asked)
    progress.close()
    finish(result)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("prompts")(prompts)
