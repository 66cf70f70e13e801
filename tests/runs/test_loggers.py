"""What loggers leave behind: the record of the packages themselves, and what may happen to such files."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.runs.log_files import read_log
from opd_probe.runs.training_logs import FORMATS, find_log
from tests.runs.write_logs import left_behind

ONE = {
    1: {"loss": 1.5, "grad_norm": math.nan},
    2: {"loss": math.inf, "grad_norm": -math.inf, "training_reward": 0.25},
    3: {"loss": 0.5},
}
FIRST_KEPT = {**ONE, 2: {**ONE[2], "loss": 9.0}}
PLACES: dict[str, Any] = {
    "trackio#one": ONE,
    "trackio/opd.db#one": ONE,
    "wandb/one": ONE,
    "wandb/one/wandb": ONE,
    "mlflow#one": ONE,
    "mlflow/mlflow.db#one": ONE,
    "mlruns#one": ONE,
    "mlruns/0#one": ONE,
    "swanlab/local": ONE,
    "swanlab/offline": FIRST_KEPT,  # the file itself has nothing of the second call
    "dvclive": ONE,
    "dvclive/plots/metrics/train/loss.tsv": {step: {"loss": values["loss"]} for step, values in ONE.items()},
    "lightning_logs/version_0": ONE,
    "trackio#two": {1: {"loss": 7.0}},
    "mlflow/mlflow.db#two": {1: {"loss": 7.0}},
    "mlruns#two": {1: {"loss": 7.0}},
    "wandb/two": {1: {"loss": 7.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_behind(tmp_path_factory.mktemp("loggers"))


def read(path: Path) -> dict[int, dict[str, float]]:
    """By step what was logged."""
    return {row.pop("step"): {k: v for k, v in row.items() if v is not None} for row in read_log(path)}


def same(found: dict[int, dict[str, float]], wanted: dict[int, dict[str, float]]) -> bool:
    return repr(sorted((s, sorted(v.items())) for s, v in found.items())) == repr(
        sorted((s, sorted(v.items())) for s, v in wanted.items())
    )


@pytest.mark.parametrize("place", PLACES)
def test_what_the_packages_wrote(recorded: Path, place: str) -> None:
    assert same(read(recorded / place), PLACES[place])


def test_every_kind_is_in_the_list_and_finds_its_own(recorded: Path) -> None:
    found = {find_log(recorded / place)[0].name for place in PLACES}
    assert found == {"trackio", "wandb", "mlflow", "mlflow's files", "swanlab", "dvclive", "CSV"}
    assert found <= {one.name for one in FORMATS}
    assert FORMATS[-1].name == "verl's console"  # which takes every file


def test_one_of_several_runs_is_to_be_named(recorded: Path) -> None:
    for place in ("trackio", "mlflow", "mlruns"):
        with pytest.raises(InputError, match="holds several runs; expected FILE#RUN with one of one, two"):
            read_log(recorded / place)
        with pytest.raises(InputError, match="no run 'three' in it; it has one, two"):
            read_log(Path(f"{recorded / place}#three"))
    with pytest.raises(InputError, match="holds one run; name it without #one"):
        read_log(Path(f"{recorded / 'dvclive'}#one"))


def test_several_logs_of_a_directory_are_not_mixed(recorded: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (folder,) = (recorded / "wandb" / name / "wandb").glob("offline-run-*")
        shutil.copytree(folder, tmp_path / "wandb" / folder.name)
    with pytest.raises(InputError, match=r"holds 2 logs \(wandb/offline-run-.*, wandb/offline-run-.*\); name one"):
        read_log(tmp_path)
    (tmp_path / "wandb" / "latest-run").symlink_to(folder.name)  # another name of one of them
    with pytest.raises(InputError, match="holds 2 logs"):
        read_log(tmp_path)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    return written(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.mark.parametrize("name", ["trackio/opd.db", "mlflow/mlflow.db"])
def test_a_database_that_was_cut_off_is_refused(recorded: Path, tmp_path: Path, name: str) -> None:
    whole = (recorded / name).read_bytes()
    for size in (20, 5_000, len(whole) // 2):
        with pytest.raises(InputError, match=r"cannot be read \(a broken database") as error:
            read_log(Path(f"{written(tmp_path / 'log.db', whole[:size])}#one"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["one/**/*.wandb", "local/**/*.swanlab"])
def test_records_that_were_cut_off_or_changed(recorded: Path, tmp_path: Path, pattern: str) -> None:
    """What is whole before the cut, with a warning."""
    whole = next(recorded.rglob(pattern)).read_bytes()
    for size in (len(whole) - 1, len(whole) - 20):
        with pytest.warns(OpdProbeWarning, match="the last record is cut off; read without it"):
            assert same(read(written(tmp_path / "cut.log", whole[:size])), ONE if "wandb" in pattern else FIRST_KEPT)
    for size, told in ((3, "no line step"), (7, "got no rows"), (60, "got no rows")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpdProbeWarning)
            with pytest.raises(InputError, match=told):
                read_log(written(tmp_path / "cut.log", whole[:size]))
    changed = bytearray(whole)
    changed[20] ^= 1
    with pytest.raises(InputError, match="the record at byte 7 has changed since it was written"):
        read_log(written(tmp_path / "changed.log", bytes(changed)))


def test_a_database_that_is_being_written(recorded: Path, tmp_path: Path) -> None:
    """What stands in the log beside it counts, nothing is made beside it, and a lock is one line."""
    path = shutil.copy(recorded / "trackio" / "opd.db", tmp_path / "opd.db")
    writer = sqlite3.connect(path)
    writer.execute("UPDATE metrics SET metrics = '{\"loss\": 4.5}' WHERE run_name = 'two'")
    writer.commit()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert before["opd.db-wal"]
    assert read(Path(f"{path}#two")) == {1: {"loss": 4.5}}
    shutil.copytree(tmp_path, tmp_path / "crashed")  # as a writer that was killed leaves it
    assert read(tmp_path / "crashed" / "opd.db#two") == {1: {"loss": 4.5}}
    writer.close()
    assert read(Path(f"{path}#two")) == {1: {"loss": 4.5}}
    assert {file.name for file in tmp_path.iterdir()} == {"opd.db", "crashed"}
    other = shutil.copy(recorded / "mlflow" / "mlflow.db", tmp_path / "mlflow.db")
    writer = sqlite3.connect(other)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match="a writer holds the database; wait"):
        read_log(Path(f"{other}#one"))
    writer.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE metrics SET metrics = '[1]'", "metrics 1: expected an object, got list"),
        ("UPDATE metrics SET metrics = x'ff7b'", "metrics 1: "),
        ('UPDATE metrics SET metrics = \'{"loss": "high"}\'', "loss is 'high'; expected a number"),
        ("UPDATE metrics SET metrics = '{\"loss\": 1}', step = -3", "step is -3; expected a whole number from 0"),
        ("UPDATE metrics SET run_name = 'one'", r"one of one \(\w+\), one \(\w+\)"),
        ("DELETE FROM metrics", "no run 'one' in it; it has none"),
        ("DROP TABLE metrics", "a database with the tables .*; expected trackio's or mlflow's"),
    ],
)
def test_databases_that_hold_something_else(recorded: Path, tmp_path: Path, change: str, told: str) -> None:
    path = shutil.copy(recorded / "trackio" / "opd.db", tmp_path / "opd.db")
    with sqlite3.connect(path) as writer:
        writer.execute(change)
    writer.close()
    with pytest.raises(InputError, match=told) as error:
        read_log(Path(f"{path}#one"))
    assert "\n" not in str(error.value)


def test_swanlabs_logs_of_a_run_that_was_killed(recorded: Path, tmp_path: Path) -> None:
    """The logs know what the records do not; of metrics without a name a warning says how many there are."""
    (folder,) = (recorded / "swanlab" / "local").glob("run-*")
    run = shutil.copytree(folder, tmp_path / "run-1")
    with (run / "logs" / "1" / "1000.log").open("a") as file:
        file.write('{"index": 4, "data": NaN}\n{"index": 5, "da')
    shutil.copytree(run / "logs" / "1", run / "logs" / "9")
    with pytest.warns(OpdProbeWarning) as said:
        assert same(read(tmp_path), {**ONE, 4: {"loss": math.nan}})
    assert [str(one.message).partition(": ")[2] for one in said] == [
        "the last line is cut off; read without it",
        "1 logs beside it are of metrics whose names it does not hold; left out",
    ]


def test_every_point_of_a_tag_in_tensorboards_files(tmp_path: Path) -> None:
    """Beyond the 10,000 that its reader samples, as tensors too; benchmarks of a step are one mean."""
    count = 10_050
    with SummaryWriter(str(tmp_path / "runs" / "now")) as writer:
        for step in range(count):
            writer.add_scalar("train/loss", step / 2, step)
        writer.add_scalar("train/grad_norm", math.nan, 3)
        for step in range(12):
            writer.add_scalar("train/learning_rate", step / 4, step, new_style=True)
        writer.add_scalar("val-core/a/acc/mean@1", 1.0, 5)
        writer.add_scalar("val-core/b/acc/mean@1", 0.5, 5)
    found = read(tmp_path)
    assert [found[step]["loss"] for step in range(count)] == [step / 2 for step in range(count)]
    assert [found[step]["training_learning_rate"] for step in range(12)] == [step / 4 for step in range(12)]
    assert math.isnan(found[3]["grad_norm"])
    assert found[5]["training_accuracy"] == 0.75


def test_llama_factorys_log(tmp_path: Path) -> None:
    more = {"epoch": 0.5, "percentage": 50.0, "elapsed_time": "0:00:01", "remaining_time": "0:00:01", "total_steps": 8}
    lines(
        tmp_path / "trainer_log.jsonl",
        {"current_steps": 4, "loss": 1.5, "lr": 0.25, **more},
        {"current_steps": 8, "loss": math.nan, "lr": 0.125, **more},
        {"current_steps": 8, "eval_loss": 1.0, **more},
        {"current_steps": 8, **more},
    )
    wanted = {4: {"loss": 1.5, "training_learning_rate": 0.25}, 8: {"loss": math.nan, "training_learning_rate": 0.125}}
    assert same(read(tmp_path), wanted)


def test_ms_swifts_log_and_its_last_line(tmp_path: Path) -> None:
    rows = [
        {"loss": 1.5, "grad_norm": 2.0, "global_step/max_steps": "4/8"},
        {"loss": 0.5, "global_step/max_steps": "8/8"},
    ]
    history = [{"loss": 1.5, "grad_norm": 2.0, "step": 4}, {"loss": 0.5, "step": 8}]
    last = {"last_model_checkpoint": "checkpoint-8", "global_step": 8, "log_history": history, "memory": 1.0}
    wanted = {4: {"loss": 1.5, "grad_norm": 2.0}, 8: {"loss": 0.5}}
    lines(tmp_path / "logging.jsonl", *rows, last)
    assert read(tmp_path) == read(lines(tmp_path / "log.jsonl", last)) == wanted
    for text in ("4/", "/8", "four/8", "-4/8", "4/8/9"):
        with pytest.raises(InputError, match="step is "):
            read_log(lines(tmp_path / "wrong.jsonl", {"loss": 1.5, "global_step/max_steps": text}))


def test_rows_out_of_order_and_of_steps_that_nobody_says(tmp_path: Path) -> None:
    """An evaluation that was logged late is no beginning anew, and a row without a step is counted."""
    late = lines(
        tmp_path / "late.jsonl",
        {"step": 1, "loss": 1.0}, {"step": 3, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 4, "loss": 4.0},
        {"step": 3, "eval_accuracy": 0.5},
    )  # fmt: skip
    wanted = {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0, "training_accuracy": 0.5}, 4: {"loss": 4.0}}
    assert read(late) == wanted
    without = lines(tmp_path / "without.jsonl", {"step": 1, "loss": 1.0}, {"loss": 2.0}, {"note": "nothing"})
    with pytest.warns(OpdProbeWarning, match="left out 1 rows without step, whose step nobody says"):
        assert read(without) == {1: {"loss": 1.0}}
    calls = [{"_step": 0, "train/global_step": 10, "loss": 1.0}, {"_step": 1, "train/global_step": 20, "loss": 2.0}]
    with pytest.warns(OpdProbeWarning, match="without train/global_step"):
        assert read(lines(tmp_path / "calls.jsonl", *calls, {"_step": 2, "loss": 3.0})) == {
            10: {"loss": 1.0}, 20: {"loss": 2.0},
        }  # fmt: skip
    same_count = [{"_step": 10, "train/global_step": 10, "loss": 1.0}, {"_step": 20, "loss": 2.0}]
    assert read(lines(tmp_path / "same.jsonl", *same_count)) == {10: {"loss": 1.0}, 20: {"loss": 2.0}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("loss.tsv", "step\tloss\nx\t1\n", "line 2: .*'x'.*; expected step and loss"),
        ("loss.tsv", "loss\n1\n", "columns .*; expected step and the metric's"),
        ("loss.tsv", "step\tloss\n1\thigh\n", "loss is 'high'; expected a number"),
        ("mlruns/0/a/metrics/loss", "1 2 three\n", "line 1: '1 2 three'; expected time, value and step"),
        ("mlruns/0/a/metrics/loss", "1\n", "line 1: '1'; expected time, value and step"),
    ],
)
def test_files_of_a_metric_that_hold_something_else(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = written(tmp_path / name, content.encode())
    if "mlruns" in name:
        written(tmp_path / "mlruns/0/a/meta.yaml", b"run_name: a\n")
        path = tmp_path
    with pytest.raises(InputError, match=told) as error:
        read_log(path)
    assert "\n" not in str(error.value)


def test_a_path_with_the_sign_that_names_a_run(tmp_path: Path) -> None:
    path = lines(tmp_path / "run#1.jsonl", {"step": 1, "loss": 2.0})
    assert read(path) == {1: {"loss": 2.0}}
    with pytest.raises(MissingError, match="no such file"):
        read_log(tmp_path / "nowhere#one")
