"""Results on stdout, and nothing else there."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDE = 240
"""Columns of a table that does not go to a terminal, so that nothing is cut off."""


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format: str) -> None:
    """Print rows whose values are JSON types; ``columns`` are those that a table shows."""
    if format == "json":
        print_json(list(rows))
    elif format == "csv":
        _print_csv(rows)
    else:
        _print_table(rows, columns)


def print_json(value: Any) -> None:
    """Strict JSON: a NaN or an infinity would be a defect of ours."""
    write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write(text: str) -> None:
    """Write to stdout and flush, so that a closed pipe shows here."""
    sys.stdout.write(text)
    sys.stdout.flush()


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names with their values; lists as JSON."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(item) if isinstance(item, list) else item


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row if name != "infinite"))
    writer = csv.DictWriter(buffer, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: row.get(name) for name in names} | row.get("infinite", {}))
    write(buffer.getvalue())


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        left = any(isinstance(row.get(name), str) for row in rows)
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in columns))
    buffer = io.StringIO()
    terminal = sys.stdout.isatty()
    console = Console(
        file=buffer, width=Console().width if terminal else WIDE, force_terminal=terminal, markup=False
    )
    console.print(table)
    write("\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n")


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if name in row.get("infinite", {}):
        return str(row["infinite"][name])
    if value is None:
        return "-"
    if isinstance(value, float):
        low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        return f"{value:.4f}{interval}"
    return str(value)
