"""``opd-probe overlap``."""

from __future__ import annotations

import typer

from opd_probe.cli.options import TrainingLog, VariantOption
from opd_probe.cli.request import takes_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.options.request import Request


@takes_request
def overlap(request: Request, *, training_log: TrainingLog = None, variant: VariantOption = None) -> None:
    """Replay student-visited states through student and teacher, and follow the overlap of their top-k sets.

    Writes DIR/overlap.csv, DIR/overlap.pdf and .png, and under DIR/traces what later commands re-use; with a training
    log also DIR/overlap-training.csv, .pdf and .png.

    Example: opd-probe overlap --ckpts runs/* --teacher big-model --prompts problems.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.overlap import overlap as run

    finish(run(request, progress, training_logs=tuple(training_log or ()), variant=variant))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("overlap")(overlap)
