"""``opd-probe tokens``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected

COLUMNS = ("rank", "token", "token_id", "contribution", "share", "mean", "per_1000_states", "net", "n_states")


def tokens(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="TRACE",
            help="An earlier trace: also list what enters and leaves the overlap from it to TRACE.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="To decode with (default: the one beside the checkpoint that the trace names, else ids are shown).",
            show_default=False,
        ),
    ] = None,
    rollouts: Annotated[
        str | None,
        typer.Option(
            "--rollouts",
            metavar="FILE",
            help="The rollouts that were replayed, for prompts and masked tokens, which a trace does not hold "
            "(default: the samples beside the trace, if there are any).",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=1000, help="Tokens in each list.")] = 20,
    states: Annotated[int, typer.Option("--states", min=1, max=200, help="Extreme states of each kind.")] = 8,
    max_rollouts: Annotated[
        int, typer.Option("--max-rollouts", min=1, max=500, help="Responses on the page at most.")
    ] = 12,
    k: options.K = None,
    seed: options.Seed = None,
    out: options.Out = None,
    format: options.FormatOption = None,
) -> None:
    """The tokens and states that a trace's numbers come from, and responses shaded token by token.

    Prints the tokens that contribute most to the reverse KL and to the sampled reward. Writes DIR/tokens.html, one
    page that loads nothing: open it in a browser.

    Example: opd-probe tokens out/traces/a/teacher/step-100.parquet --against out/traces/a/teacher/step-0.parquet
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.tokens import table_rows
        from opd_probe.commands.tokens import tokens as run

    report = run(
        trace,
        progress,
        options={"k": k, "seed": seed},
        against=against,
        tokenizer=tokenizer,
        rollouts=rollouts,
        top=top,
        states=states,
        max_rollouts=max_rollouts,
        out=out,
    )
    progress.close()
    if format == options.Format.json:
        printing.print_json(report.document)
    elif format == options.Format.csv:
        printing.print_rows(table_rows(report.document), (), "csv")
    else:
        _print_lists(report.document["tokens"])
    for line in report.document["missing"]:
        progress.say(f"missing: {line}")
    progress.say(f"wrote {', '.join(str(file) for file in report.files)}")


def _print_lists(lists: dict[str, list[dict[str, object]]]) -> None:
    titles = {
        "reverse_kl": "tokens by their part of the reverse KL (nats per state)",
        "lowest_reward": "sampled tokens by Σ r, lowest (nats per state)",
        "highest_reward": "sampled tokens by Σ r, highest (nats per state)",
        "entering": "tokens that enter the overlap",
        "leaving": "tokens that leave the overlap",
    }
    for place, (name, rows) in enumerate(lists.items()):
        printing.write(f"{chr(10) if place else ''}{titles[name]}\n")
        shown = [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]
        columns = [column for column in COLUMNS if any(column in row for row in shown)]
        printing.print_rows(shown, columns, "table")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("tokens")(tokens)
