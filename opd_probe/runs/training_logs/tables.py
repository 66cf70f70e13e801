"""Logs as tables: CSV, also of Lightning and as wandb exports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from opd_probe.runs.training_logs.form import LogFormat, Row
from opd_probe.runs.training_logs.lines import encoding_of


def _table(path: Path, _run: str) -> Iterator[Row]:
    """Plain, or an export of wandb's, with columns ``<run> - <name>`` beside their ``__MIN`` and ``__MAX``. A cell is
    empty where nothing was logged, and ``nan`` where that was."""
    table = pd.read_csv(
        path, encoding=encoding_of(path), skipinitialspace=True, keep_default_na=False, na_values=[""], dtype=object
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("rows have more fields than the header has names")
    names = [str(name) for name in table.columns]
    kept = {name: name.rsplit(" - ", 1)[-1] for name in names if not name.endswith(("__MIN", "__MAX"))}
    twice = [name for name in dict.fromkeys(kept.values()) if list(kept.values()).count(name) > 1]
    if twice:
        raise ValueError(f"columns of several runs ({twice[0]}); export one run to a file")
    for row in table.to_dict("records"):
        yield {short: None if pd.isna(row[name]) else row[name] for name, short in kept.items()}


CSV = LogFormat(
    "CSV",
    "a CSV file with step",
    lambda path: path.is_file() and path.suffix.lower() == ".csv",
    _table,
    inside=("metrics.csv", "lightning_logs/version_*/metrics.csv"),
)
