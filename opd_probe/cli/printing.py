"""Results on stdout, and nothing else there."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO

from opd_probe.digits import with_interval
from opd_probe.errors import OutputError
from opd_probe.plain import csv_cell, visible

WIDE = 10_000
"""Columns of a table that does not go to a terminal, so that nothing is folded."""

BROKEN = 12
"""Characters at which words are broken where columns would have no room otherwise."""


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


def print_document(value: Mapping[str, Any], format: str | None) -> None:
    """Print what is no table: as JSON, or its values by their dotted names."""
    if format == "json":
        print_json(value)
    else:
        rows = [{"name": name, "value": held} for name, held in flatten(value)]
        print_rows(rows, ("name", "value"), str(format) if format else "table")


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
        if not isinstance(text, str):  # which is how some find out what a stream takes
            raise TypeError(f"expected text, got {type(text).__name__}")
        if text:
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
        cells = {name: csv_cell(_flat(row.get(name))) for name in names}
        writer.writerow(cells | row.get("infinite", {}))
    write(buffer.getvalue())


def _flat(value: Any) -> Any:
    """A nested value as the JSON text that a cell can hold."""
    return json.dumps(value, allow_nan=False) if isinstance(value, (list, Mapping)) else value


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table with intervals; on a terminal that is too narrow for it without them, and with what all rows have in
    common in one line above. Columns that still have no room are named below."""
    width = _terminal_width()
    text = _render(_cells(rows, columns, intervals=True), WIDE, gap=2)
    if width is not None and max(map(len, text)) > width:
        text = _narrow(_cells(rows, columns, intervals=False), width)
    write("\n".join(text) + "\n")


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


@dataclass(frozen=True)
class _Column:
    """A column as it is shown: a header and its cells.

    Attributes:
        text: whether cells are words, which may be broken, and not numbers.
        names: whether they name rows: what all have in common is then said once.
    """

    name: str
    cells: list[str]
    text: bool
    names: bool

    def width(self, most: int = WIDE) -> int:
        """The room that it needs: words of at most ``most`` characters, numbers whole, and the words of its header."""
        cells = max((len(cell) for cell in self.cells), default=0)
        return max(min(cells, most) if self.text else cells, *map(len, self.name.split("_")))


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, intervals: bool) -> list[_Column]:
    found = []
    for name in columns:
        values = [row.get(name) for row in rows]
        text = any(isinstance(value, list) or (isinstance(value, str) and not _counted(value)) for value in values)
        names = all(value is None or isinstance(value, (str, int)) for value in values)
        found.append(_Column(name, [_cell(row, name, intervals) for row in rows], text, names))
    return found


def _counted(value: str) -> bool:
    """Whether a text is a count, such as ``>64``."""
    return value.removeprefix(">").isdecimal()


def _render(columns: Sequence[_Column], width: int, *, gap: int, most: Mapping[str, int] | None = None) -> list[str]:
    """The lines of a table: padded here where each cell fits its column, since laying out whole lines costs more than
    the rest of a command; broken by rich where one does not."""
    headers = [one.name if most is None else one.name.replace("_", " ") for one in columns]  # broken between words
    contents = [[header, *one.cells] for header, one in zip(headers, columns, strict=True)]
    sizes = [[_cell_width(cell) for cell in cells] for cells in contents]
    widths = [max(held) if most is None else most[one.name] for one, held in zip(columns, sizes, strict=True)]
    fits = all(max(held) <= room for held, room in zip(sizes, widths, strict=True))
    if not fits or sum(widths) + gap * (len(widths) - 1) > width:
        return _broken(columns, headers, width, gap, most)
    padded = []
    for one, cells, held, room in zip(columns, contents, sizes, widths, strict=True):
        spaces = [" " * (room - size) for size in held]
        sides = zip(cells, spaces, strict=True) if one.text else zip(spaces, cells, strict=True)
        padded.append([left + right for left, right in sides])
    return [(" " * gap).join(line).rstrip() for line in zip(*padded, strict=True)]


def _cell_width(text: str) -> int:
    """The places that a text takes in a terminal, where some characters take two and others none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _broken(
    columns: Sequence[_Column], headers: Sequence[str], width: int, gap: int, most: Mapping[str, int] | None
) -> list[str]:
    """The lines of a table some of whose cells take several."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column, header in zip(columns, headers, strict=True):
        room = None if most is None else most[column.name]
        table.add_column(header, justify="left" if column.text else "right", overflow="fold", width=room)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    buffer = io.StringIO()
    # a name such as a:key:b is no picture
    Console(file=buffer, width=width, markup=False, emoji=False, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def _narrow(columns: Sequence[_Column], width: int) -> list[str]:
    """The first columns that have room, words broken where they must be."""
    alike = [one for one in columns if one.names and len(one.cells) > 1 and len({*one.cells}) == 1]
    told = [one for one in columns if one not in alike] or list(columns)
    said = [] if len(told) == len(columns) else [f"{one.name.replace('_', ' ')} {one.cells[0]}" for one in alike]
    for most in (WIDE, 24, 18, BROKEN):  # words whole where there is room for all columns
        needed = [one.width(most) for one in told]
        if sum(needed) + len(needed) - 1 <= width:
            break
    shown, room = 0, width
    while shown < len(told) and (room >= needed[shown] or shown == 0):
        room -= needed[shown] + 1
        shown += 1
    most_of = {one.name: min(need, width) for one, need in zip(told[:shown], needed, strict=False)}
    last = told[shown - 1]
    if last.text:  # a sentence takes what is left
        most_of[last.name] = min(last.width(), most_of[last.name] + max(room + 1, 0))
    text = _render(told[:shown], width, gap=1, most=most_of)
    if said:
        text = [*textwrap.wrap(" · ".join(said), width), *text]
    left = ", ".join(one.name for one in told[shown:])
    return text + (textwrap.wrap(f"no room for {left}: see the file, or --format json", width) if left else [])


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
    if isinstance(value, list):
        return visible(", ".join(map(str, value))) or "-"
    return visible(str(value))
