"""``opd-probe lab``: small real distillation runs, and the tables that are measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.output import output_path

lab = typer.Typer(no_args_is_help=True, help="Small real distillation runs: the paper's experiments in miniature.")

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[EXPERIMENT]...", help="Names as `lab list` shows them; none: all.")
]
Seeds = Annotated[list[int], typer.Option("--seeds", help="Repeatable.")]
Cache = Annotated[
    Path, typer.Option(parser=output_path, metavar="PATH", help="Where trained models, runs and measurements are kept.")
]
Out = Annotated[
    Path,
    typer.Option(
        parser=output_path, metavar="PATH", help="Where data/ (the aggregated tables) and claims.json are written."
    ),
]

_SEEDS = [0, 1, 2]
_CACHE = Path("lab-cache")
_OUT = Path("figures")


@lab.command("list")
def list_experiments(format: options.FormatOption = None) -> None:
    """Print the experiments: what each compares, over which runs."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.summary import list_rows

    printing.print_rows(list_rows(), ("experiment", "figures", "runs", "question"), str(format or "table"))


@lab.command()
def run(
    names: Names = None,
    seeds: Seeds = _SEEDS,
    cache: Cache = _CACHE,
    out: Out = _OUT,
    processes: Annotated[int, typer.Option(min=1, help="Side by side, one thread each.")] = 2,
) -> None:
    """Train and measure what the cache lacks, then write the tables and the verdicts on the claims."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.summary import run_experiments

    _say_written(run_experiments(names or [], seeds, cache, out, processes))


@lab.command()
def tables(seeds: Seeds = _SEEDS, cache: Cache = _CACHE, out: Out = _OUT) -> None:
    """Write the tables and the verdicts from what the cache holds; nothing is trained."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.summary import write_results

    _say_written(write_results(seeds, cache, out))


@lab.command()
def status(
    names: Names = None, seeds: Seeds = _SEEDS, cache: Cache = _CACHE, format: options.FormatOption = None
) -> None:
    """Print how much of each experiment is in the cache."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.summary import status_rows

    rows = status_rows(names or [], seeds, cache)
    printing.print_rows(rows, ("experiment", "seed", "done", "of", "missing"), str(format or "table"))


@lab.command()
def demo(
    out: Annotated[Path, typer.Option(parser=output_path, metavar="PATH", help="Where the runs are written.")] = Path(
        "runs"
    ),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run (default: the recipe's).")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out problems of each run.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides the prompts and the draws.")] = 0,
) -> None:
    """Distil one student from a compatible and from an incompatible teacher, side by side."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.demo import run_demo

    for path in run_demo(out, seed, steps, prompts):
        typer.echo(path)


@lab.command()
def bases(cache: Cache = _CACHE) -> None:
    """Retrain the base models that the demo ships, from their seed."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab.demo import build_bases

    for path in build_bases(cache=cache):
        typer.echo(path)


@lab.command()
def signatures(
    out: Annotated[
        Path | None,
        typer.Option(parser=output_path, metavar="PATH", help="The table's file (default: the package's own)."),
    ] = None,
    seeds: Seeds = _SEEDS,
    rollouts: Annotated[int, typer.Option(help="Rollouts of each measurement.")] = 1024,
    cache: Cache = _CACHE,
) -> None:
    """Train, distil and measure the demo's runs for every seed, and write the table with each rule's verdict."""
    quieten_libraries()
    with uncollected():
        from opd_probe.lab import signatures as module

    table = module.signatures(out or module.PUBLISHED, seeds, cache, rollouts)
    typer.echo(module.render(table))


def _say_written(paths: list[Path]) -> None:
    progress.say(f"wrote {', '.join(str(path) for path in paths)}")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(lab, name="lab")
