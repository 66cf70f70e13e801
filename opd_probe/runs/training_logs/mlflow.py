"""mlflow's database, and the files that it kept before.

Read in 3.17. In the database NaN is a flag beside a value of 0, and infinities are the largest floats; the files hold
``time value step`` lines, one file for each metric, with ``nan`` and ``inf``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from opd_probe.errors import InputError
from opd_probe.runs.training_logs.form import LogFormat, Point, Row, by_step, chosen_run
from opd_probe.runs.training_logs.sqlite import database, has_table
from opd_probe.texts import read_text

_LARGEST = sys.float_info.max


def _database(path: Path, run: str) -> Iterator[Row]:
    with database(path) as connection:
        runs = connection.execute(
            "SELECT run_uuid, name FROM runs WHERE COALESCE(lifecycle_stage, 'active') = 'active' "
            "AND run_uuid IN (SELECT run_uuid FROM metrics) ORDER BY start_time, run_uuid"
        )
        wanted = chosen_run({str(one): str(name or one) for one, name in runs}, run)
        query = "SELECT step, key, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY timestamp, rowid"
        points = connection.execute(query, (wanted,))
        yield from by_step((step, str(key), _value(value, bool(is_nan))) for step, key, value, is_nan in points)


def _value(value: float, is_nan: bool) -> float:
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if isinstance(value, float) and abs(value) >= _LARGEST else value


def _is_run(path: Path) -> bool:
    return path.is_dir() and (path / "meta.yaml").is_file() and (path / "metrics").is_dir()


def _runs_below(path: Path) -> list[Path]:
    """The runs of a store, of an experiment, or the one that a path is."""
    if _is_run(path):
        return [path]
    return [run for pattern in ("*", "*/*") for run in sorted(path.glob(pattern)) if _is_run(run)]


def _is_store(path: Path) -> bool:
    """A run's directory, an experiment's, or the store of them, which has an experiment of its own in ``0``."""
    if not path.is_dir() or not (_is_run(path) or (path / "meta.yaml").is_file() or path.name == "mlruns"):
        return False
    return bool(_runs_below(path))


def _files(path: Path, run: str) -> Iterator[Row]:
    places = _runs_below(path)
    told = sorted((start, place, name) for place, (name, stage, start) in zip(places, map(_meta, places), strict=True)
                  if stage != "deleted")  # fmt: skip
    wanted = chosen_run({place.name: name for _, place, name in told}, run)
    return by_step(_points(next(place for _, place, _ in told if place.name == wanted) / "metrics"))


def _meta(run: Path) -> tuple[str, str, float]:
    """The name of a run, whether it was deleted, and when it started."""
    try:
        meta = yaml.safe_load(read_text(run / "meta.yaml"))
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(f"{run / 'meta.yaml'}: {str(error).splitlines()[0]}") from None
    held = meta if isinstance(meta, dict) else {}
    start = held.get("start_time")
    began = float(start) if isinstance(start, (int, float)) else 0.0
    return str(held.get("run_name") or run.name), str(held.get("lifecycle_stage") or "active"), began


def _points(metrics: Path) -> Iterator[Point]:
    for file in sorted(file for file in metrics.rglob("*") if file.is_file()):
        name = file.relative_to(metrics).as_posix()
        for number, line in enumerate(read_text(file).splitlines(), 1):
            parts = line.split()
            if not parts:
                continue
            try:
                yield int(parts[2]) if len(parts) > 2 else 0, name, float(parts[1])
            except (ValueError, IndexError):
                raise InputError(f"{file}, line {number}: {line[:40]!r}; expected time, value and step") from None


DATABASE = LogFormat(
    "mlflow",
    "mlflow's database",
    lambda path: has_table(path, "metrics", {"key", "value", "run_uuid", "step", "is_nan"}),
    _database,
    inside=("mlflow.db",),
    several=True,
)

FILES = LogFormat("mlflow's files", "the directory of an mlflow run", _is_store, _files, ("mlruns",), several=True)
