"""Results on stdout, and nothing else there."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from opd_probe.digits import with_interval
from opd_probe.errors import OutputError
from opd_probe.plain import csv_cell, visible

WIDE = 10_000
"""Columns of a table that does not go to a terminal, so that nothing is folded."""


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
    """Write to stdout. Quiet when its reader has gone, as ``| head`` does, or when there is none.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    if sys.stdout is None:  # closed by whoever started this process
        return
    with _written():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _give_up_stdout()
    except OutputError:
        raise
    except OSError as error:
        _give_up_stdout()
        raise OutputError(f"standard output: cannot be written ({error.strerror}); free space") from None


def _give_up_stdout() -> None:
    """What Python would flush at exit must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Careful:
    """A stream to which others print, such as help, under the rules of :func:`write`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """The characters of the text."""
        with _written():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        with _written():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def careful_stdout() -> Iterator[None]:
    """Within the block whatever is printed follows the rules of :func:`write`, and a character that stdout's encoding
    does not have is spelled out, as on stderr.

    Raises:
        OutputError: it cannot be written.
    """
    stream: Any = sys.stdout
    if stream is None:
        yield
        return
    errors = getattr(stream, "errors", None)
    _take(stream, "backslashreplace")
    careful: Any = _Careful(stream)
    sys.stdout = careful
    try:
        yield
        careful.flush()
    finally:
        sys.stdout = stream
        _take(stream, errors)


def _take(stream: Any, errors: str | None) -> None:
    """Have a stream treat what it cannot encode in a way, where it can be told."""
    if isinstance(stream, io.TextIOWrapper):
        with suppress(OSError, ValueError):  # it is closed or gone
            stream.reconfigure(errors=errors)


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
        cells = {name: csv_cell(row.get(name)) for name in names}
        writer.writerow(cells | row.get("infinite", {}))
    write(buffer.getvalue())


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table with intervals; without them on a terminal that is too narrow for them."""
    width = _terminal_width()
    text = _render_table(rows, columns, WIDE, full=True)
    if width is not None and max(map(len, text)) > width:
        text = _render_table(rows, columns, width, full=False)
    write("\n".join(text) + "\n")


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def _render_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int, *, full: bool) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2 if full else 1, 0, 0))
    for name in columns:
        left = any(isinstance(row.get(name), str) for row in rows)
        header = name if full else name.replace("_", " ")  # a narrow one is broken between words
        table.add_column(header, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, name, full) for name in columns))
    buffer = io.StringIO()
    Console(file=buffer, width=width, markup=False, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def _end(row: Mapping[str, Any], name: str) -> float | None:
    """An end of an interval, which may be infinite."""
    infinite = row.get("infinite", {}).get(name)
    return row.get(name) if infinite is None else float(infinite)


def _cell(row: Mapping[str, Any], name: str, intervals: bool) -> str:
    value = row.get(name)
    if name in row.get("infinite", {}):
        return str(row["infinite"][name])
    if value is None:
        return "-"
    if isinstance(value, float):
        ends = (_end(row, f"{name}{end}") if intervals else None for end in ("_lo", "_hi"))
        return with_interval(value, *ends)
    return visible(str(value))
