"""The training logs of measured runs: a trainer's state beside its checkpoints, or files that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from opd_probe.errors import InputError, warn
from opd_probe.options.naming import user_path
from opd_probe.runs.log_files import NAMES, Names, read_log
from opd_probe.runs.stored import Measured
from opd_probe.runs.training_logs.trainer import NAME as STATE
from opd_probe.runs.training_logs.trainer import states_below

NAN = float("nan")


def training_log(measured: Sequence[Measured], given: Mapping[str, str], names: Names = NAMES) -> pd.DataFrame:
    """The logs of the runs that have one: ``run``, ``step`` and the quantities of ``names``; empty when none has.

    Args:
        given: run → file; under "" the file of the one run that there is. The log of another run is the
            ``trainer_state.json`` of its last checkpoint, where the trace says it lies, if it is still there.

    Raises:
        MissingError: a given file is not there.
        InputError: a given file holds no log, or names a run that no trace is of.
    """
    runs = list(dict.fromkeys(one.run for one in measured))
    if "" in given and len(runs) > 1:
        raise InputError(f"--training-log {given['']}: expected RUN=FILE, since the runs are {', '.join(runs)}")
    files = {run or runs[0]: file for run, file in given.items()}
    for run in files:
        if run not in runs:
            raise InputError(f"--training-log {run}=…: no trace of run {run!r}; the runs are {', '.join(runs)}")
    parts = []
    for run in runs:
        found = run in files
        rows = read_log(user_path(files[run]), names) if found else _beside_checkpoints(measured, run, names)
        parts.append(pd.DataFrame(rows, columns=["step", *names]).assign(run=run))
    table = pd.concat(parts, ignore_index=True)
    return table.astype(dict.fromkeys(names, "float64") | {"step": "Int64"})


def with_log(rows: Sequence[dict[str, Any]], log: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with what their run logged at their step; NaN where it logged nothing then."""
    names = [name for name in log.columns if name not in ("run", "step") and log[name].notna().any()]
    logged = {(row["run"], row["step"]): row for row in log.to_dict("records")}
    unknown: dict[str, Any] = dict.fromkeys(names, NAN)
    at = [logged.get((row["run"], row["step"]), unknown) for row in rows]
    return [{**row, **{name: known[name] for name in names}} for row, known in zip(rows, at, strict=True)]


def log_files(texts: Sequence[str]) -> dict[str, str]:
    """``RUN=FILE`` or ``FILE`` of each ``--training-log``, by run.

    Raises:
        InputError: another form, or two files for one run.
    """
    files: dict[str, str] = {}
    for text in texts:
        run, equals, file = text.partition("=")
        if not equals or user_path(text).is_file():
            run, file = "", text
        if not file or (equals and not run and file != text):
            raise InputError(f"--training-log {text}: expected RUN=FILE, or FILE when there is one run")
        if run in files or (files and "" in (run, *files)):
            raise InputError(f"--training-log {text}: a second file for one run; expected RUN=FILE once for each run")
        files[run] = file
    return files


def _beside_checkpoints(measured: Sequence[Measured], run: str, names: Names) -> list[dict[str, Any]]:
    for path in _states(measured, run):
        if path.is_file():
            try:
                return read_log(path, names, required=False)
            except InputError as error:
                warn(f"{error}; drawn without it")
                return []
    return []


def _states(measured: Sequence[Measured], run: str) -> list[Path]:
    """Where the trainer's state may lie: with the student of each trace, or in the directory of a run that was measured
    while it trained; latest step first."""
    known = [one for one in measured if one.run == run and one.step is not None]
    places = []
    for one in sorted(known, key=lambda one: one.step or 0, reverse=True):
        places.append(Path(str(one.trace.provenance.get("student", {}).get("path", ""))) / STATE)
        if directory := one.trace.provenance.get("labels", {}).get("directory"):
            places += states_below(Path(directory))
    return list(dict.fromkeys(places))
