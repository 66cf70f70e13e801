"""``python -m opd_probe.lab bases | demo | signatures``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Small real on-policy distillation runs.")

Cache = Annotated[Path, typer.Option(help="Where trained models and measurements are kept.")]


@app.command()
def bases(cache: Cache = Path("lab-cache")) -> None:
    """Retrain the base models that the demo ships, from their seed."""
    from opd_probe.lab.demo import build_bases

    for path in build_bases(cache=cache):
        typer.echo(path)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the runs are written.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run (default: the recipe's).")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out problems of each run.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides the prompts and the draws.")] = 0,
) -> None:
    """Distil one student from a compatible and from an incompatible teacher, side by side."""
    from opd_probe.lab.demo import run_demo

    for path in run_demo(out, seed, steps, prompts):
        typer.echo(path)


@app.command()
def signatures(
    out: Annotated[Path | None, typer.Option(help="The table's file (default: the package's own).")] = None,
    seeds: Annotated[list[int], typer.Option(help="Repeatable.")] = [0, 1, 2],  # noqa: B006 (typer copies it)
    rollouts: Annotated[int, typer.Option(help="Rollouts of each measurement.")] = 1024,
    cache: Cache = Path("lab-cache"),
) -> None:
    """Train, distil and measure every seed, and write the table of signatures with each rule's verdict."""
    from opd_probe.lab import signatures as module

    table = module.signatures(out or module.PUBLISHED, seeds, cache, rollouts)
    typer.echo(module.render(table))


if __name__ == "__main__":
    app()
