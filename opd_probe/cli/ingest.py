"""``opd-probe ingest``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected


def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Rollout files, or directories of them.", show_default=False),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The .parquet or .jsonl file to write; a directory for the traces of NeMo-RL's statistics.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What wrote them (default: recognised by their fields).", show_default=False),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="The field to take as score, where several are rewards.", show_default=False
        ),
    ] = None,
    grade: Annotated[
        bool, typer.Option("--grade", help="Grade every response that has an answer, though it has a score.")
    ] = False,
    step_pattern: options.StepPattern = None,
    format: options.FormatOption = None,
) -> None:
    """Turn what a trainer or an evaluation left into a rollout file, and say what was recognised.

    NeMo-RL's statistics of both models' top k (opd_topk_stats_step1.pt) become traces, without a model.

    Responses with an answer and no score are graded. Text without token ids stays text and is marked as re-tokenised.

    Example: opd-probe ingest rollout_data/ -o rollouts.parquet
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.ingest import ingest as run

    shown = run(paths, out, progress, kind=kind, score=score, regrade=grade, step_pattern=step_pattern)
    progress.close()
    printing.print_document(shown, format)
    progress.say(f"wrote {out}")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("ingest")(ingest)
