"""``opd-probe figures``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request


def figures(
    traces: Annotated[
        list[str],
        typer.Option("--traces", metavar="PATH...", help="Stored traces, or directories that hold them."),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME...", show_default=False, help="Figures to draw (default: every one that can be)."
        ),
    ] = None,
    training_log: options.TrainingLog = None,
    teacher_accuracy: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-accuracy",
            metavar="TEACHER=SHARE",
            show_default=False,
            help="A teacher's own accuracy on the same problems, for gap recovery; repeat it for several teachers.",
        ),
    ] = None,
    group_seeds: Annotated[
        bool,
        typer.Option("--group-seeds", help="Runs whose names differ only in a seed (run-seed0, …) are one run."),
    ] = False,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            show_default=False,
            help="Also a figure in another trainer's definitions: verl, fireworks, nemo-rl or "
            "thunlp[:SUPPORT[:WEIGHTS]]; repeat it for several.",
        ),
    ] = None,
    k: options.K = None,
    average: options.AverageOption = None,
    by: options.By = None,
    seed: options.Seed = None,
    out: options.Out = None,
    format: options.FormatOption = None,
) -> None:
    """Every kind of figure that stored traces allow; for the others, a line that says what is missing.

    Writes DIR/figures/NAME.pdf and .png. No model is run.

    Example: opd-probe figures --traces opd-probe-out --only dynamics entropy
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.figures import figures as run

    request = Request(
        traces=tuple(traces),
        options={"k": k, "average": str(average) if average else None, "seed": seed},
        by=by,
        out=out,
        format=str(format) if format else None,
    )
    result = run(
        request,
        progress,
        only=tuple(only or ()),
        training_logs=tuple(training_log or ()),
        teacher_accuracies=tuple(teacher_accuracy or ()),
        group_seeds=group_seeds,
        variants=tuple(variant or ()),
    )
    finish(result)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("figures")(figures)
