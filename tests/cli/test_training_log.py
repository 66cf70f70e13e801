"""``opd-probe overlap --training-log``: what a trainer logged beside what was measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.workspace import Caller, files_below

WORDS = ("overlap", "--ckpts", "runs/good/checkpoint-5", "runs/good/checkpoint-20", "--teacher", "teacher",
         "--rollouts", "rollouts.jsonl")  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """verl's console log of steps 0 to 30, every tenth."""
    path = tmp_path / "verl.log"
    path.write_text(
        "".join(
            f"(TaskRunner pid=7) step:{step} - actor/pg_loss:{1 / (1 + step)} - critic/score/mean:{step / 100} - "
            f"val-core/math/acc/mean@4:{step / 50}\n"
            for step in range(0, 31, 10)
        )
    )
    return path


def test_rows_a_table_and_one_sheet(call: Caller, log: Path, tmp_path: Path) -> None:
    done = call(*WORDS, "--training-log", log, "--out", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.err
    at = [(row["step"], row["loss"], row["training_reward"], row["training_accuracy"]) for row in done.rows]
    assert at == [(5, None, None, None), (20, pytest.approx(1 / 21), 0.2, 0.4)]
    assert all("grad_norm" not in row for row in done.rows)  # never logged
    sheet = pd.read_csv(tmp_path / "out" / "overlap-training.csv").set_index("step")
    assert list(sheet.index) == [0, 5, 10, 20, 30]
    assert sheet["training_reward"].dropna().to_dict() == {0: 0.0, 10: 0.1, 20: 0.2, 30: 0.3}
    assert sheet["overlap_ratio"].dropna().index.tolist() == [5, 20]
    written = {name for name in files_below(tmp_path / "out") if "/" not in name}
    assert written == {f"overlap{part}.{form}" for part in ("", "-training") for form in ("csv", "pdf", "png")}
    drawn = call("figures", "--traces", tmp_path / "out", "--training-log", log, "--only", "training-log",
                 "--out", tmp_path / "f")  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert files_below(tmp_path / "f") == {"figures/training-log.pdf", "figures/training-log.png"}


def test_a_bad_log_is_found_before_anything_runs(call: Caller, log: Path, tmp_path: Path) -> None:
    log.write_text("nothing of verl's\n")
    done = call(*WORDS, "--training-log", log, "--out", tmp_path / "out")
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(f"error: training log {log}: cannot be read (no line step:N - name:value")
    assert not (tmp_path / "out").exists()
