"""What loggers leave on disk: two runs each, written by the packages themselves where they are installed.

``python -m tests.runs.write_logs`` records them in ``left_behind.zip``, from an environment with the extra ``loggers``.
The tests read the record, or what is written anew where the packages are there (``make loggers``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

RECORD = Path(__file__).with_name("left_behind.zip")
NAN, INFINITY = float("nan"), float("inf")

CALLS = [
    (1, {"train/loss": 1.5, "train/grad_norm": NAN}),
    (2, {"train/loss": 9.0, "train/reward": 0.25}),
    (2, {"train/loss": INFINITY, "train/grad_norm": -INFINITY}),
    (3, {"train/loss": 0.5}),
]
"""Step and metrics, in the order of the calls; step 2 says its loss twice."""

OTHER = [(1, {"train/loss": 7.0})]
"""Of the second run."""


def trackio(root: Path) -> None:
    os.environ["TRACKIO_DIR"] = str(root / "trackio")
    import trackio

    for name, calls in (("one", CALLS), ("two", OTHER)):
        trackio.init(project="opd", name=name, auto_log_gpu=False)
        for step, metrics in calls:
            trackio.log(metrics, step=step)
        trackio.finish()
    (root / "trackio" / "opd.lock").unlink(missing_ok=True)


def wandb(root: Path) -> None:
    import wandb

    settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, x_disable_stats=True,
                              x_disable_meta=True, save_code=False)  # fmt: skip
    for name, calls in (("one", CALLS), ("two", OTHER)):
        (root / "wandb" / name).mkdir(parents=True)
        run = wandb.init(project="opd", name=name, dir=str(root / "wandb" / name), settings=settings)
        for step, metrics in calls:
            run.log(metrics, step=step)
        run.log({"long": "x" * 70_000}, step=4)
        run.finish()


def mlflow(root: Path) -> None:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    (root / "mlflow").mkdir()
    for address in (f"sqlite:///{root}/mlflow/mlflow.db", f"file://{root}/mlruns"):
        mlflow.set_tracking_uri(address)
        mlflow.set_experiment(experiment_id="0")
        for name, calls in (("one", CALLS), ("two", OTHER)):
            with mlflow.start_run(run_name=name):
                for step, metrics in calls:
                    for metric, value in metrics.items():
                        mlflow.log_metric(metric, value, step=step)


def swanlab(root: Path) -> None:
    import swanlab

    for mode, calls in (("local", CALLS), ("offline", CALLS)):
        swanlab.init(project="opd", experiment_name="one", mode=mode, logdir=str(root / "swanlab" / mode))
        for step, metrics in calls:
            swanlab.log(metrics, step=step)
        swanlab.finish()


def dvclive(root: Path) -> None:
    from dvclive import Live

    with Live(str(root / "dvclive"), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for step, metrics in CALLS:
            live.step = step
            for metric, value in metrics.items():
                live.log_metric(metric, value)


def lightning(root: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(root), name="lightning_logs")
    for step, metrics in CALLS:
        logger.log_metrics({name.replace("/", "_"): value for name, value in metrics.items()}, step=step)
        logger.save()


WRITERS: dict[str, Callable[[Path], None]] = {
    "trackio": trackio, "wandb": wandb, "mlflow": mlflow, "swanlab": swanlab, "dvclive": dvclive,
    "lightning": lightning,
}  # fmt: skip
KEPT = (
    "*.db",
    "*.wandb",
    "*.swanlab",
    "logs/[0-9]*/*.log",
    "*.tsv",
    "metrics.csv",
    "meta.yaml",
    "mlruns/**/metrics/**/*",
)


def write(root: Path) -> None:
    """Each package in a process of its own, since some keep a state."""
    for name in WRITERS:
        code = f"from pathlib import Path; from tests.runs.write_logs import {name}; {name}(Path({str(root)!r}))"
        paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=root, env=os.environ | paths)


def left_behind(root: Path) -> Path:
    """A directory with what the packages left: written now where they are there, else as it was recorded."""
    if all(find_spec(name) for name in WRITERS):
        write(root)
    else:
        with zipfile.ZipFile(RECORD) as archive:
            archive.extractall(root)
    return root


def _record() -> None:
    with TemporaryDirectory() as place:
        write(Path(place))
        files = {file for pattern in KEPT for file in Path(place).rglob(pattern) if file.is_file()}
        with zipfile.ZipFile(RECORD, "w", zipfile.ZIP_LZMA) as archive:
            for file in sorted(files):
                archive.write(file, file.relative_to(place))


if __name__ == "__main__":
    _record()
