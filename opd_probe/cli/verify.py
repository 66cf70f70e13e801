"""``opd-probe verify``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected

DIFFERS = 1
"""The exit code when a state differs."""


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, **more)


def verify(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)],
    states: Annotated[
        int, typer.Option("--states", min=0, help="States to compute again, drawn at random; 0: checksums alone.")
    ] = 64,
    seed: options.Seed = None,
    rollouts: Annotated[
        str | None, _option("--rollouts", metavar="FILE", help="What was replayed; else what the trace says.")
    ] = None,
    student: Annotated[
        str | None, _option("--student", metavar="MODEL", help="Where the student is, if no longer where it was.")
    ] = None,
    teacher: Annotated[
        str | None, _option("--teacher", metavar="MODEL", help="Where the teacher is, if no longer where it was.")
    ] = None,
    device: options.Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a trace: its checksums, and a random sample of its states against the models that made it.

    Exit code 0 when all agrees, or when the models are gone and the checksums agree; 1 when a state differs; 2 for a
    trace that is damaged.

    Example: opd-probe verify out/traces/a/teacher/step-100.parquet --rollouts rollouts.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.verify import verify as run

    said = run(
        trace,
        progress,
        states=states,
        seed=seed or 0,
        rollouts=rollouts,
        student=student,
        teacher=teacher,
        device=device,
    )
    progress.close()
    if json:
        printing.print_json(said)
    else:
        rows = [{"name": name, "value": value} for name, value in printing.flatten(said)]
        printing.print_rows(rows, ("name", "value"), "table")
    if said["verdict"] == "differs":
        raise typer.Exit(DIFFERS)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("verify")(verify)
