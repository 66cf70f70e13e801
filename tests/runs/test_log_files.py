"""Training logs in the forms in which trainers leave them, and in the forms in which they break."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.runs.log_files import NAMES, QUANTITIES, read_log
from opd_probe.runs.logs import log_files

VERL = {"actor/pg_loss": 0.5, "actor/grad_norm": 2.0, "critic/score/mean": 0.25, "response_length/mean": 100.0}
OURS = {"loss": 0.5, "grad_norm": 2.0, "training_reward": 0.25, "training_response_length": 100.0}


def known(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what was not logged."""
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def console(step: int, **more: float) -> str:
    return " - ".join([f"step:{step}", *(f"{name}:{value}" for name, value in {**VERL, **more}.items())])


def test_verls_console_among_everything_else_that_a_process_prints(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(
        "starting at step:7\n"
        "\x1b[36m(TaskRunner pid=4242)\x1b[0m " + console(0) + "\n"
        "Training Progress:  10%|█         | 1/10 [00:01<00:09]\x1b[32m(TaskRunner pid=4242, ip=10.0.0.1)\x1b[0m "
        "step:1 - actor/loss:np.float64(0.125) - actor/grad_norm:nan - val-core/openai/gsm8k/acc/mean@1:0.5 - "
        "val-core/aime/acc/mean@1:np.float64(0.25) - val-aux/aime/acc/std@1:9.0 [repeated 2x across cluster]\n"
        "(WorkerDict pid=1) INFO global_step:12 - saved\r\n",
        encoding="utf-8",
    )
    first, second = read_log(path)
    # One name for the whole file: it has actor/loss, so that actor/pg_loss is not read.
    assert known([first]) == [{"step": 0} | {name: value for name, value in OURS.items() if name != "loss"}]
    assert math.isnan(second.pop("grad_norm"))
    assert known([second]) == [{"step": 1, "loss": 0.125, "training_accuracy": 0.375}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.jsonl", json.dumps({"step": 3, "data": VERL}) + "\n"),
        ("log.jsonl", json.dumps({"step": 3, **VERL}) + "\n\n"),
        ("log.csv", "Step,r - actor/pg_loss,r - actor/pg_loss__MIN,r - actor/pg_loss__MAX,r - actor/grad_norm,"
                    "r - critic/score/mean,r - response_length/mean\n3,0.5,0,1,2,0.25,100\n"),
        ("log.out", console(3)),
        ("trainer_state.json", json.dumps({"log_history": [
            {"step": 3, "loss": 0.5, "grad_norm": 2.0}, {"step": 3, "eval_loss": 9.0},
            {"step": 3, "reward": 0.25, "completions/mean_length": 100.0}, {"step": 3, "train_runtime": 1.0}]})),
    ],
)  # fmt: skip
def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert known(read_log(tmp_path / name)) == [{"step": 3, **OURS}]


def test_a_run_that_went_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Steps 3 and 4 of the first attempt were given up; of step 2, logged twice, the later value counts."""
    steps = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (2, 20.0), (3, 30.0)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in steps))
    assert known(read_log(path)) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 20.0}, {"step": 3, "loss": 30.0}]
    table = tmp_path / "log.csv"  # which somebody may have sorted
    table.write_text("step,loss\n3,0.3\n1,0.1\n2,\n1,1.0\n")
    assert known(read_log(table)) == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 0.3}]


def test_a_log_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    with pytest.warns(OpdProbeWarning, match="the last line is cut off"):
        (row,) = read_log(path)
    assert row["step"] == 1
    assert math.isnan(row["loss"])


def test_the_directory_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    with pytest.raises(MissingError, match=r"no log in this directory; expected trainer_state\.json"):
        read_log(tmp_path)
    for step in (10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"step": step, "loss": 0.5}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    assert known(read_log(tmp_path)) == [{"step": 10, "loss": 0.5}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.JSONL", json.dumps({"step": 3, "loss": 0.5}) + "\r\n"),
        ("log.csv", "step, loss\r\n3, 0.5\r\n"),
        ("log.csv", "Step,a - b - train/loss\n3,0.5\n"),
        ("log.txt", "step:3 - actor/pg_loss:0.5\n"),
        ("trainer_state.json", json.dumps({"log_history": [{"step": 3, "loss": 0.5}]})),
    ],
)
def test_byte_order_marks_and_what_else_windows_does(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert known(read_log(tmp_path / name)) == [{"step": 3, "loss": 0.5}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.jsonl", '{"step": 1, "lo\n{"step": 2}\n', r"cannot be read \(line 1: Invalid control character"),
        ("log.jsonl", "[1, 2]\n", r"cannot be read \(line 1: expected an object, got list\)"),
        ("log.jsonl", "", r"expected rows with step and loss or grad_norm, got no rows"),
        ("log.jsonl", '{"step": 1, "loss": "high"}\n', "loss is 'high'; expected a number"),
        ("log.jsonl", '{"step": 1, "loss": {"a": 1}}\n', "loss is .*; expected a number"),
        ("log.jsonl", '{"step": 1.5, "loss": 1}\n', "step is 1.5; expected a whole number"),
        ("log.jsonl", '{"step": Infinity, "loss": 1}\n', "step is inf; expected a whole number"),
        ("log.jsonl", '{"step": NaN, "loss": 1}\n', "step is nan; expected a whole number"),
        ("log.jsonl", '{"step": true, "loss": 1}\n', "step is 'True'; expected a number"),
        ("log.jsonl", '{"epoch": 1, "loss": 1}\n', "expected rows with step .* got epoch, loss"),
        ("log.jsonl", f'{{"step": {10**30}, "loss": 1}}\n', "step is 1000.*; expected a whole number"),
        ("log.jsonl", f'{{"step": 1, "loss": {10**400}}}\n', "loss is '1000.*; expected a number"),
        ("log.jsonl", "[" * 100_000, r"cannot be read \(maximum recursion depth"),
        ("log.csv", "step,loss\n1,0.5,7,8\n", r"cannot be read \(rows have more fields than the header"),
        ("log.csv", "", r"cannot be read \(No columns"),
        ("log.csv", "Wall time,Step,Value\n1,2,3\n", "expected rows with step .* got Wall time, Step, Value"),
        ("log.csv", "Step,a - train/loss,b - train/loss\n1,2,3\n", r"columns of several runs \(train/loss\)"),
        ("log.json", "{}", "no list log_history in it"),
        ("log.json", "[]", "no list log_history in it"),
        ("log.json", '{"log_history": [3]}', "cannot be read"),
        ("log.json", '{"log_history"', "cannot be read"),
        ("run.log", "nothing\n", "no line step:N - name:value"),
        ("run.log", "step:1 - other:1\n", "expected rows with step .* got step, other"),
    ],
)
def test_logs_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_log(tmp_path / name)
    assert "\n" not in str(error.value)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00step")
    with pytest.raises(InputError):
        read_log(tmp_path / "bytes")


def test_what_was_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no such file; expected trainer_state\.json"):
        read_log(tmp_path / "nowhere")
    assert log_files(["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}
    assert log_files(["x"]) == {"": "x"}
    for words in (["a="], ["=x"], [""]):
        with pytest.raises(InputError, match="expected RUN=FILE"):
            log_files(words)
    for words in (["a=x", "a=y"], ["x", "y"], ["a=x", "y"], ["y", "a=x"]):
        with pytest.raises(InputError, match="a second file for one run"):
            log_files(words)


def test_every_quantity_has_a_label_and_no_name_stands_for_two() -> None:
    from opd_probe.plots.labels import METRICS

    assert set(QUANTITIES) <= set(METRICS)
    names = [name for one in NAMES.values() for name in one]
    assert len(names) == len(set(names))
