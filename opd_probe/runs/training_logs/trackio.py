"""trackio's ``<project>.db``: a row per call of ``log``, its metrics as a JSON blob.

Read in 0.43. NaN and infinities are the texts ``NaN``, ``Infinity`` and ``-Infinity``. The database's step counts calls
where the trainer named none, as transformers, which logs ``train/global_step`` among the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opd_probe.runs.training_logs.form import LogFormat, Row, chosen_run
from opd_probe.runs.training_logs.sqlite import database, has_table
from opd_probe.texts import parse_json


def _rows(path: Path, run: str) -> Iterator[Row]:
    with database(path) as connection:
        columns = {str(row[1]) for row in connection.execute("PRAGMA table_info(metrics)")}
        key = "run_id" if "run_id" in columns else "run_name"  # the names alone tell runs apart in older ones
        runs = connection.execute(f"SELECT {key}, MIN(run_name) FROM metrics GROUP BY {key} ORDER BY MIN(id)")
        wanted = chosen_run({str(one): str(name) for one, name in runs}, run)
        query = f"SELECT id, step, metrics FROM metrics WHERE {key} = ? ORDER BY id"
        for number, step, blob in connection.execute(query, (wanted,)):
            try:
                held = parse_json(blob)
            except (ValueError, TypeError) as error:
                raise ValueError(f"metrics {number}: {error}") from None
            if not isinstance(held, dict):
                raise ValueError(f"metrics {number}: expected an object, got {type(held).__name__}")
            yield {"_step": step, **held}


FORMAT = LogFormat(
    "trackio",
    "trackio's database",
    lambda path: has_table(path, "metrics", {"run_name", "step", "metrics"}),
    _rows,
    inside=("*.db", "trackio/*.db"),
    several=True,
)
