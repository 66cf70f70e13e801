"""A training log of every form that is read, as trees of files."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.fuzz.trees import Tree, framed
from tests.runs.write_logs import RECORD

STEPS = [{"step": step, "loss": 0.5 / step, "grad_norm": 2.0, "reward": 0.1 * step, "epoch": 0.1} for step in (1, 2, 3)]
VERL = [
    {"step": step, "data": {"actor/pg_loss": 0.5, "critic/score/mean": 0.2, "response_length/mean": 9.0}}
    for step in (1, 2)
]


def _json(root: Path) -> Tree:  # noqa: ARG001
    return {
        "trainer_state.json": json.dumps(
            {"global_step": 3, "log_history": [*STEPS, {"step": 3, "eval_loss": 1.0}]}
        ).encode()
    }


def _lines(name: str) -> Callable[[Path], Tree]:
    def make(root: Path) -> Tree:  # noqa: ARG001
        rows = STEPS if name == "log.jsonl" else VERL
        return {name: "".join(json.dumps(row) + "\n" for row in rows).encode()}

    return make


def _csv(root: Path) -> Tree:  # noqa: ARG001
    header = "Step,run - actor/pg_loss,run - actor/pg_loss__MIN,run - actor/pg_loss__MAX,run - actor/grad_norm\n"
    return {"log.csv": (header + "1,0.5,0,1,2\n2,0.25,0,1,nan\n3,,0,1,2\n").encode()}


def _console(root: Path) -> Tree:  # noqa: ARG001
    lines = [
        f"\x1b[36m(TaskRunner pid=4)\x1b[0m step:{n} - actor/pg_loss:np.float64(0.{n}) - actor/grad_norm:1.0"
        for n in (1, 2)
    ]
    return {"run.log": ("starting\n" + "\n".join(lines) + " [repeated 2x across cluster]\n").encode()}


def _events(root: Path) -> Tree:  # noqa: ARG001
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    records = [Event(file_version="brain.Event:2", wall_time=1.0)]
    for step in (1, 2):
        scalars = [Summary.Value(tag=tag, simple_value=0.5 * step) for tag in ("train/loss", "train/grad_norm")]
        records.append(Event(step=step, wall_time=float(step), summary=Summary(value=scalars)))
    return {"events.out.tfevents.1.host": b"".join(framed(record.SerializeToString()) for record in records)}


def _recorded(place: str) -> Callable[[Path], Tree]:
    """What a logger's own package left."""

    def make(root: Path) -> Tree:
        with zipfile.ZipFile(RECORD) as archive:
            archive.extractall(root)
        found = root / place
        return {str(path.relative_to(found.parent)): path.read_bytes() for path in found.rglob("*") if path.is_file()}

    return make


def _database(root: Path) -> Tree:
    """Of a program that logs nothing that is read."""
    root.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(root / "other.db")) as connection:
        connection.execute("create table steps (step integer, loss real)")
        connection.commit()
    return {"other.db": (root / "other.db").read_bytes()}


LOGS: dict[str, Callable[[Path], Tree]] = {
    "transformers": _json,
    "JSON Lines": _lines("log.jsonl"),
    "JSON Lines, nested": _lines("log.ndjson"),
    "CSV": _csv,
    "verl's console": _console,
    "tensorboard": _events,
    "dvclive": _recorded("dvclive"),
    "trackio": _recorded("trackio"),
    "mlflow": _recorded("mlflow"),
    "mlflow's files": _recorded("mlruns"),
    "wandb": _recorded("wandb/one"),
    "swanlab": _recorded("swanlab"),
    "SQLite": _database,
}
"""By kind, what makes a log of it below a directory."""
