"""Training logs: a trainer's state beside its checkpoints, or a file that the user names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from opd_probe.errors import InputError, MissingError
from opd_probe.run.plan import warn
from opd_probe.run.stored import Measured

QUANTITIES = ("loss", "grad_norm")
STATE = "trainer_state.json"


def training_log(measured: Sequence[Measured], given: Mapping[str, str]) -> pd.DataFrame:
    """The logs of the runs that have one: ``run``, ``step``, ``loss``, ``grad_norm``; empty when none has.

    Args:
        given: run → file. The log of another run is the ``trainer_state.json`` of its last checkpoint, where the trace
            says it lies, if it is still there.

    Raises:
        MissingError: a given file is not there.
        InputError: a given file holds no log, or names a run that no trace is of.
    """
    runs = list(dict.fromkeys(one.run for one in measured))
    for run in given:
        if run not in runs:
            raise InputError(f"--training-log {run}=…: no trace of run {run!r}; the runs are {', '.join(runs)}")
    parts = []
    for run in runs:
        rows = _given(Path(given[run]).expanduser()) if run in given else _beside_checkpoints(measured, run)
        parts.append(pd.DataFrame(rows, columns=["step", *QUANTITIES]).assign(run=run))
    table = pd.concat(parts, ignore_index=True)
    return table.astype(dict.fromkeys(QUANTITIES, "float64"))


def _beside_checkpoints(measured: Sequence[Measured], run: str) -> list[dict[str, Any]]:
    steps = [(one.step, one) for one in measured if one.run == run and one.step is not None]
    for _, one in sorted(steps, key=lambda pair: pair[0], reverse=True):
        path = Path(str(one.trace.provenance.get("student", {}).get("path", ""))) / STATE
        if path.is_file():
            try:
                return _logged(_rows(path))
            except InputError as error:
                warn(f"{error}; drawn without it")
                return []
    return []


def _given(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise MissingError(f"training log {path}: no such file; expected {STATE}, or .jsonl or .csv with step and loss")
    rows = _rows(path)
    kept = _logged(rows)
    if not kept:
        found = ", ".join(dict.fromkeys(str(name) for row in rows for name in row)) or "no rows"
        raise InputError(f"training log {path}: expected rows with step and {' or '.join(QUANTITIES)}, got {found}")
    return kept


def _logged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that log a step, one per step, in order; of two the later, as after a run was resumed."""
    kept = {
        int(row["step"]): {name: row.get(name) for name in QUANTITIES}
        for row in rows
        if row.get("step") is not None and any(row.get(name) is not None for name in QUANTITIES)
    }
    return [{"step": step, **kept[step]} for step in sorted(kept)]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path)
            return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
        return [dict(row) for row in json.loads(text)["log_history"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"training log {path}: cannot be read ({str(error).splitlines()[0]})") from None
