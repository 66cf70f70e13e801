"""Logs in lines of text: JSON, and verl's console."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd_probe.errors import warn
from opd_probe.runs.training_logs.form import LogFormat, Row

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE = re.compile(r"(?<![\w/-])step:(\d+) - (.+)")
_NUMPY = re.compile(r"^np\.\w+\((.*)\)$")
_REPEATED = re.compile(r"\s*\[repeated \d+x[^\]]*\]\s*$")


def encoding_of(path: Path) -> str:
    """UTF-8, or the UTF-16 in which some shells redirect output; with a byte order mark or without."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _lines(path: Path, _run: str) -> Iterator[Row]:
    """JSON Lines, flat, or as verl's file logger nests them: ``{"step": …, "data": {…}}``. A line with the whole
    ``log_history``, as ms-swift's last one, repeats what is there already; alone it is read."""
    broken, history, logged = "", [], False
    with path.open(encoding=encoding_of(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if broken:
                raise ValueError(broken)
            try:
                row = json.loads(line)
            except ValueError as error:
                broken = f"line {number}: {error}"  # of the last line it is a log that is still being written
                continue
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: expected an object, got {type(row).__name__}")
            if isinstance(row.get("log_history"), list):
                history = [entry for entry in row["log_history"] if isinstance(entry, dict)]
                continue
            nested = row.get("data")
            logged = True
            yield {**nested, "step": row.get("step")} if isinstance(nested, dict) else row
    if not logged:
        yield from history
    if broken:
        warn(f"training log {path}: the last line is cut off; read without it")


def _console(path: Path, _run: str) -> Iterator[Row]:
    """verl's console: ``step:12 - actor/pg_loss:0.1 - …``, coloured or not, with or without the name of a process."""
    nothing = True
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        for line in file:
            match = _LINE.search(_ESCAPES.sub("", line))
            if match is None:
                continue
            row: dict[str, Any] = {"step": int(match.group(1))}
            for part in _REPEATED.sub("", match.group(2)).rstrip().split(" - "):
                name, colon, value = part.rpartition(":")
                if colon:
                    row[name.strip()] = _NUMPY.sub(r"\1", value.strip())
            nothing = False
            yield row
    if nothing:
        raise ValueError("no line step:N - name:value - … in it")


FORMAT = LogFormat(
    "JSON Lines",
    "a JSON Lines file",
    lambda path: path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"),
    _lines,
    inside=("trainer_log.jsonl", "logging.jsonl"),
    appended=True,
)
"""Of verl's file logger, LLaMA-Factory, ms-swift, and anyone's."""

CONSOLE = LogFormat("verl's console", "a console log of verl", Path.is_file, _console, appended=True)
