"""dvclive's ``plots/metrics``: a table with tabs for each metric, in a file of its name."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from opd_probe.runs.training_logs.form import LogFormat, Point, Row, by_step
from opd_probe.texts import check_ordinary

_METRICS = Path("plots") / "metrics"


def _fits(path: Path) -> bool:
    return path.suffix.lower() == ".tsv" if path.is_file() else (path / _METRICS).is_dir()


def _rows(path: Path, _run: str) -> Iterator[Row]:
    return by_step(_points(path))


def _points(path: Path) -> Iterator[Point]:
    root = path.parent if path.is_file() else path / _METRICS
    for file in [path] if path.is_file() else sorted(root.rglob("*.tsv")):
        name = file.relative_to(root).with_suffix("").as_posix()
        check_ordinary(file)
        with file.open(encoding="utf-8-sig", newline="") as handle:
            table = csv.reader(handle, delimiter="\t")
            header = next(table, [])
            if "step" not in header or len(header) < 2:
                raise ValueError(f"{file}: columns {header}; expected step and the metric's")
            step = header.index("step")
            value = next(place for place in reversed(range(len(header))) if place != step)
            for number, row in enumerate(table, 2):
                if row and (len(row) != len(header) or not row[step].isdecimal()):
                    raise ValueError(f"{file}, line {number}: {row}; expected {' and '.join(header)}")
                if row:
                    yield int(row[step]), name, row[value]


FORMAT = LogFormat("dvclive", "the directory of dvclive", _fits, _rows, inside=("dvclive",))
