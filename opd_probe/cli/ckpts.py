"""``opd-probe ckpts``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opd_probe.cli import options, printing
from opd_probe.cli.session import progress, quieten_libraries
from opd_probe.imports import uncollected
from opd_probe.plain import visible

COLUMNS = ("run", "step", "format", "dtype", "parameters", "size", "base", "tokenizer")

_EVIDENT = ("step in its name", "its trainer's record", None)
"""Ways of reading a step that need no word."""


def ckpts(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Directories, or quoted patterns.", show_default=False)
    ],
    base: options.Base = None,
    step_pattern: options.StepPattern = None,
    format: options.FormatOption = None,
) -> None:
    """List the checkpoints below a path, and what a trainer left there that cannot be used, and why.

    Only names, headers and small JSON files are read: whether each weight has a place in the model shows when it is
    loaded. The exit code is 2 when no checkpoint can be used.

    Example: opd-probe ckpts runs
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.runs.inventory import check_usable, inventory

    rows = inventory(paths, base=base, step_pattern=step_pattern)
    progress.close()
    if format in (options.Format.json, options.Format.csv):
        printing.print_rows(rows, (), str(format))
    else:
        _print_lists(rows)
    check_usable(rows)


def _print_lists(rows: list[dict[str, Any]]) -> None:
    usable = [row for row in rows if row["refused"] is None]
    if usable:
        shown = [
            {
                **row,
                "step": f"epoch {row['step']}" if row["unit"] == "epoch" else row["step"],
                "size": _size(row["bytes"]),
                "tokenizer": "yes" if row["tokenizer"] else "no",
            }
            for row in usable
        ]
        printing.print_rows(shown, COLUMNS, "table")
        _print_readings(usable)
    for place, row in enumerate(row for row in rows if row["refused"] is not None):
        refused = visible(f"refused {row['path']}: {row['refused']}")
        printing.write(f"{chr(10) if usable and not place else ''}{refused}\n")


def _print_readings(rows: list[dict[str, Any]]) -> None:
    for run, read in dict.fromkeys((row["run"], row["read"]) for row in rows if row["read"] not in _EVIDENT):
        printing.write(f"{run}: read as {read}\n")
    unknown = [row["run"] for row in rows if row["step"] is None]
    if len(unknown) > 1:
        printing.write(f"{len(unknown)} checkpoints of no known step; --step-pattern REGEX reads it from their names\n")


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("ckpts")(ckpts)
