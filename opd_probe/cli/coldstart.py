"""``opd-probe coldstart``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.printing import print_document
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected


class Layout(StrEnum):
    """How an example is laid out."""

    messages = "messages"
    prompt_completion = "prompt-completion"


def coldstart(
    rollouts: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Rollouts of the teacher: files, or directories of them.", show_default=False
        ),
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="FILE", help="The .jsonl or .parquet file to write.", show_default=False),
    ],
    layout: Annotated[
        Layout,
        typer.Option(
            help="The whole chat (trained on all turns unless the trainer masks them), or prompt and response apart."
        ),
    ] = Layout.messages,
    correct: Annotated[
        bool, typer.Option("--correct", help="Only responses that are right; those with an answer are graded.")
    ] = False,
    per_prompt: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N responses to a prompt.", show_default=False)
    ] = None,
    tokenizer: options.Tokenizer = None,
    format: options.FormatOption = None,
) -> None:
    """Make a teacher's rollouts the examples of a cold start: supervised training before distillation.

    What was cut off, ends in repetition or says nearly the same as another response to its prompt is left out. The
    file is what TRL's SFTTrainer reads.

    Example: opd-probe coldstart teacher-rollouts.jsonl -o coldstart.jsonl --correct
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.coldstart import coldstart as run

    shown = run(
        rollouts, out, progress, layout=layout.value, correct_only=correct, per_prompt=per_prompt, tokenizer=tokenizer
    )
    progress.close()
    print_document(shown, format)
    progress.say(f"wrote {out}")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("coldstart")(coldstart)
