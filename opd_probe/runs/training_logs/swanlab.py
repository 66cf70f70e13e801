"""swanlab's ``run-<id>.swanlab`` of a run that logs offline or locally, and the ``logs/`` beside it of the latter.

Read in 0.10. Records hold a scalar each, with its name and step. ``logs/<n>/*.log`` have a JSON object of step and
value per line, without a name: the n-th column among the records has it. Of a metric that was logged twice in a step
the records keep the first value and the logs the last, which counts. The logs are written at once, the records when a
run ends, so that of a run that was killed the logs may know more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opd_probe.errors import warn
from opd_probe.runs.training_logs.form import LogFormat, Point, Row, by_step, starts_with
from opd_probe.runs.training_logs.records import double_in, fields, message_in, records, text_in, whole_in
from opd_probe.texts import parse_json, read_text

MAGIC = b":SWL"
_COLUMN, _SCALAR = 12, 13
"""Numbers of fields of a record."""


def _rows(path: Path, _run: str) -> Iterator[Row]:
    names: list[str] = []
    points: list[Point] = []
    for record in records(path):
        held = fields(record)
        if (column := message_in(held, _COLUMN)) is not None:
            names.append(text_in(column, 3))
        elif (scalar := message_in(held, _SCALAR)) is not None:
            number = message_in(scalar, 5)
            if number is not None:
                points.append((whole_in(scalar, 2), text_in(scalar, 1), double_in(number, 1)))
    return by_step([*points, *_logged(path, names)])


def _logged(path: Path, names: list[str]) -> Iterator[Point]:
    """What the logs beside the records hold."""
    unnamed = 0
    for file in sorted(
        path.parent.glob("logs/*/*.log"), key=lambda file: (file.parent.name, len(file.name), file.name)
    ):
        number = int(file.parent.name) if file.parent.name.isdecimal() else 0
        if not 1 <= number <= len(names):
            unnamed += 1
            continue
        lines = read_text(file).splitlines()
        for place, line in enumerate(lines, 1):
            try:
                held = parse_json(line)
                yield int(held["index"]), names[number - 1], held["data"]
            except (ValueError, LookupError, TypeError) as error:
                if place == len(lines):
                    warn(f"training log {file}: the last line is cut off; read without it")
                    continue
                raise ValueError(f"{file}, line {place}: {error}") from None
    if unnamed:
        warn(f"training log {path}: {unnamed} logs beside it are of metrics whose names it does not hold; left out")


FORMAT = LogFormat(
    "swanlab",
    "swanlab's .swanlab file",
    lambda path: starts_with(path, MAGIC),
    _rows,
    inside=("*.swanlab", "run-*/*.swanlab", "swanlog/run-*/*.swanlab"),
)
