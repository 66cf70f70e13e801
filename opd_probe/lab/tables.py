"""The aggregated tables: what the figures and the claims are drawn from, made from the cache alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from opd_probe.atomic import whole_file
from opd_probe.lab.experiments import CONTINUED_RUNS, EXPERIMENTS, SEEDS, Experiment, accuracies
from opd_probe.lab.recipes import RUNS
from opd_probe.lab.resample import accuracy_of, difference_of, recovery_of
from opd_probe.lab.runs import Job, done, read_continuation, read_evaluation, read_run
from opd_probe.lab.task import RESPONSE_LENGTH

__all__ = ["TABLES", "build_tables", "read_tables", "write_tables"]

Row = dict[str, Any]

TRAINING_COLUMNS: Final = ("loss", "grad_norm", "response_length", "student_entropy", "overlap_ratio", "reward")


class _Source:
    """The cache as the tables read it: finished runs of one experiment and seed, each file read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[tuple[str, int], Any] = {}

    def runs(self, experiment: Experiment, seed: int) -> Iterator[tuple[Row, list[Row], dict[int, Row]]]:
        """The identifying columns, the training log and the measurements of every finished run."""
        for label, name in experiment.runs.items():
            if not done(self.root, Job("run", name, seed)):
                continue
            if (name, seed) not in self._runs:
                self._runs[name, seed] = read_run(self.root, name, seed)
            key = {"experiment": experiment.name, "run": label, "teacher": RUNS[name].teacher, "seed": seed}
            yield key, *self._runs[name, seed]

    def evaluation(self, name: str, seed: int) -> dict[str, float] | None:
        """A model's own accuracy by problem, when it has been measured."""
        if not done(self.root, Job("evaluation", name, seed)):
            return None
        return read_evaluation(self.root, name, seed)


def _ends(steps: Mapping[int, Row]) -> Iterator[tuple[int, Row]]:
    yield from ((step, steps[step]) for step in (min(steps), max(steps)))


def _curves(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, log, steps in source.runs(experiment, seed):
        for step, measured in steps.items():
            trained = {name: log[step - 1][name] if step else None for name in ("loss", "grad_norm")}
            for k in experiment.ks:
                summary = measured["summary"].get(str(k))
                if summary is not None:
                    yield key | {"step": step, "k": k, "states": "own"} | summary | trained


def _training(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, log, _ in source.runs(experiment, seed):
        for row in log:
            yield key | {"step": row["step"]} | {name: row[name] for name in TRAINING_COLUMNS}


def _estimate(name: str, estimate: tuple[float, float, float]) -> Row:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), estimate, strict=True))


def _models(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    def row(model: str, role: str, teacher: str | None, scores: Mapping[str, float], n: int) -> Row:
        key = {"experiment": experiment.name, "model": model, "role": role, "teacher": teacher, "seed": seed}
        return key | _estimate("accuracy", accuracy_of(scores)) | {"n_rollouts": n}

    for name, role in accuracies(experiment).items():
        scores = source.evaluation(name, seed)
        if scores is not None:
            yield row(name, role, None, scores, 2 * len(scores))
    students = set()
    for key, _, steps in source.runs(experiment, seed):
        run = RUNS[experiment.runs[key["run"]]]
        (_, before), (_, after) = _ends(steps)
        count = run.measure.samples * len(before["held_out"])
        start = (run.student, run.distillation.prompts.frame)
        if start not in students:
            students.add(start)
            yield row(run.student, "student", None, before["held_out"], count)
        teacher = source.evaluation(run.teacher, seed)
        end = row(key["run"], "distilled", run.teacher, after["held_out"], count)
        if teacher is not None:
            end |= _estimate("gap_recovery", recovery_of(before["held_out"], after["held_out"], teacher))
        yield end


def _positions(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, _, steps in source.runs(experiment, seed) if experiment.positions else ():
        for step, measured in steps.items():
            yield from (key | {"step": step, "k": 16} | row for row in measured["positions"])


def _mass(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, _, steps in source.runs(experiment, seed) if experiment.mass else ():
        for step, measured in _ends(steps):
            yield from (key | {"step": step} | row for row in measured["mass"])


def _rewards(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, _, steps in source.runs(experiment, seed) if experiment.rewards else ():
        for step, measured in _ends(steps):
            for rollout in measured["rollouts"]:
                chosen = {name: rollout[name] for name in ("prompt_id", "sequence_mean_reward", "correct")}
                yield key | {"step": step, "rollout_id": rollout["id"]} | chosen


def _continuation(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for label, name in CONTINUED_RUNS.items() if experiment.continued else ():
        if not done(source.root, Job("continuation", name, seed)):
            continue
        key = {"experiment": experiment.name, "run": label, "teacher": RUNS[name].teacher, "seed": seed}
        for row in read_continuation(source.root, name, seed)["depths"]:
            student, teacher = ({str(i): x for i, x in enumerate(row[side])} for side in ("student", "teacher"))
            yield (
                key
                | {"depth": row["depth"], "depth_share": row["depth"] / RESPONSE_LENGTH, "n": len(student)}
                | _estimate("student_accuracy", accuracy_of(student))
                | _estimate("teacher_accuracy", accuracy_of(teacher))
                | _estimate("gain", difference_of(teacher, student))
            )


def _teachers(source: _Source, experiment: Experiment, seed: int) -> Iterator[Row]:
    for key, _, steps in source.runs(experiment, seed):
        pair = RUNS[experiment.runs[key["run"]]].measure.pair
        if pair is not None:
            for step, measured in steps.items():
                yield key | {"step": step, "pair": " and ".join(pair), "states": "own"} | measured["pair"]


TABLES: Final[dict[str, Callable[[_Source, Experiment, int], Iterator[Row]]]] = {
    "curves": _curves,
    "training": _training,
    "models": _models,
    "positions": _positions,
    "mass": _mass,
    "rewards": _rewards,
    "continuation": _continuation,
    "teachers": _teachers,
}
"""Every table by name; its file is ``<name>.parquet``."""


def build_tables(root: Path, seeds: Sequence[int] = SEEDS) -> dict[str, pd.DataFrame]:
    """Every table from what is finished in the cache, over all experiments and seeds."""
    source = _Source(root)
    return {
        name: pd.DataFrame([row for e in EXPERIMENTS.values() for seed in seeds for row in rows(source, e, seed)])
        for name, rows in TABLES.items()
    }


def write_tables(tables: Mapping[str, pd.DataFrame], directory: Path) -> list[Path]:
    """Write ``<name>.parquet`` for each table; numbers in single precision, NaN as null."""
    written = []
    for name, table in tables.items():
        narrow = {column: np.float32 for column in table.columns if table[column].dtype == np.float64}
        path = directory / f"{name}.parquet"
        held = pa.Table.from_pandas(table.astype(narrow), preserve_index=False)
        with whole_file(path) as unfinished, unfinished.open("wb") as target:
            pq.write_table(held, target, compression="zstd")
        written.append(path)
    return written


def read_tables(directory: Path) -> dict[str, pd.DataFrame]:
    """The tables of a directory by name."""
    return {name: pd.read_parquet(directory / f"{name}.parquet") for name in TABLES}
