"""The aggregated tables of the lab, as the figures of its gallery ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import opd_probe
from opd_probe.errors import MissingError

__all__ = ["Data"]


class Data:
    """The aggregated tables of a directory, ``<name>.parquet`` each, read when a figure asks for one."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._tables: dict[str, pd.DataFrame] = {}

    def rows(self, table: str, experiment: str, **equal: Any) -> pd.DataFrame:
        """The rows of one experiment, those whose columns equal the values given (any of a list).

        Raises:
            MissingError: no such table, or no such row in it.
        """
        if table not in self._tables:
            path = self.directory / f"{table}.parquet"
            if not path.is_file():
                raise MissingError(f"{path}: no such table; make it with opd-probe lab run")
            self._tables[table] = pd.read_parquet(path)
        rows = self._tables[table]
        for column, value in {"experiment": experiment, **equal}.items():
            if rows.empty:
                break
            rows = rows[rows[column].isin(value if isinstance(value, list) else [value])]
        if rows.empty:
            wanted = ", ".join(f"{column} {value}" for column, value in {"experiment": experiment, **equal}.items())
            raise MissingError(f"{self.directory / table}.parquet: no row of {wanted}; make it with opd-probe lab run")
        rows = rows.reset_index(drop=True)
        return rows if "states" in rows else rows.assign(states="own")  # the lab measures each student at its own

    def curves(self, experiment: str, k: int = 16, **equal: Any) -> pd.DataFrame:
        """The measured steps of an experiment's runs, every metric with its interval."""
        return self.rows("curves", experiment, k=k, **equal)

    def logged(self, experiment: str, **equal: Any) -> pd.DataFrame:
        """The same with the training log: a row for every optimiser step."""
        log = self.rows("training", experiment, **equal)[["run", "seed", "step", "loss", "grad_norm"]]
        return opd_probe.join_training_log(self.curves(experiment, **equal), log)

    def levels(self, experiment: str, names: Mapping[str, str]) -> pd.DataFrame:
        """The own accuracies of models, to draw as levels: model → what the figure calls it."""
        rows = self.rows("models", experiment, model=list(names))
        return rows.assign(label=rows["model"].map(dict(names)))[["label", "seed", "accuracy"]]

    def bars(self, experiment: str, role: str) -> pd.DataFrame:
        """One row per model and seed; what stands before a colon in a run's label is its group."""
        rows = self.rows("models", experiment, role=role)
        parts = rows["model"].str.rpartition(": ")
        grouped = rows.assign(model=parts[2].str.replace("-", " "), group=parts[0])
        return grouped if (parts[0] != "").any() else grouped.drop(columns="group")
