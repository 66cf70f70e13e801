"""``opd-probe overlap`` on real tiny checkpoints."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from opd_probe.metrics import METRICS, TRACE_METRICS
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below, run_command, write_lines

REPLAY = ("--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--format", "json")
SAMPLE = ("--teacher", "teacher", "--prompts", "prompts.jsonl", "--max-new-tokens", "6", "--num-rollouts", "2",
          "--format", "json")  # fmt: skip


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a model is loaded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("opd_probe.jobs.pool.load_model", refuse)
    monkeypatch.setattr("opd_probe.jobs.replay.load_model", refuse)


def test_as_typed_in_a_shell_and_as_a_quoted_pattern(workspace: Path, tmp_path: Path, call: Caller) -> None:
    out = tmp_path / "out"
    typed = run_command(["overlap", "--ckpts", "runs/*", *REPLAY, "--out", out], workspace, shell=True)
    assert typed.code == 0, typed.err
    quoted = call("overlap", *REPLAY, "--out", out, "--ckpts", "runs/*")
    assert quoted.rows == typed.rows
    assert "warning: skipped runs/notes.txt: not a directory" in typed.err
    assert [(row["run"], row["step"]) for row in typed.rows] == [
        (run, step) for run in ("bad", "good") for step in (5, 20, 100)
    ]
    files = files_below(out)
    (record,) = {name for name in files if name.startswith(".")}
    assert record.startswith(".finished/")
    assert files - {record} == {
        "overlap.csv", "overlap.pdf", "overlap.png",
        *(f"traces/{run}/teacher/step-{step}.parquet" for run in ("good", "bad") for step in (5, 20, 100)),
    }  # fmt: skip


def test_every_field_of_a_row(call: Caller, tmp_path: Path) -> None:
    done = call("overlap", "--ckpts", "runs/good", *REPLAY, "--jsd", "--out", tmp_path / "o")
    row = done.rows[0]
    assert list(row)[:5] == ["run", "step", "teacher", "k", "states"]
    assert (row["run"], row["step"], row["teacher"], row["k"], row["states"]) == ("good", 5, "teacher", 16, "fixed")
    assert (row["n_prompts"], row["n_rollouts"], row["n_states"], row["n_empty_overlap"]) == (4, 8, 48, 0)
    for name, metric in METRICS.items():
        kinds = ("", "_lo", "_hi", "_n") if metric.summary == "mean" else ("_median", "_p90", "_share_beyond", "_n")
        for kind in kinds:
            assert f"{name}{kind}" in row
    for name in TRACE_METRICS:
        for kind in ("", "_lo", "_hi", "_n"):
            assert f"{name}{kind}" in row
    assert row["special_token_gap_n"] == 48  # the tokenizer tells which tokens are special
    for name in ("response_length", "truncation_rate", "accuracy", "sequence_mean_reward", "reward_auroc"):
        assert name in row
    assert row["response_length"] == 6
    assert row["accuracy"] is None
    assert 0 < row["jsd"] < 0.7
    assert row["overlap_ratio_lo"] <= row["overlap_ratio"] <= row["overlap_ratio_hi"]


def test_another_k_and_format_run_no_model(call: Caller, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words = ["overlap", "--ckpts", "runs/good", *REPLAY[:-1]]
    assert call(*words, "json", "--out", tmp_path).code == 0
    request.getfixturevalue("no_models")
    again = call(*words, "csv", "--out", tmp_path, "--k", "4")
    rows = list(csv.DictReader(io.StringIO(again.out)))
    assert {row["k"] for row in rows} == {"4"}
    assert (tmp_path / "overlap.csv").read_text() == again.out
    table = call(*words, "table", "--out", tmp_path, "--k", "4")
    lines = table.out.splitlines()
    assert lines[0].split()[:5] == ["run", "step", "teacher", "k", "states"]
    assert len(lines) == 4
    shown = re.search(r"(0\.\d\d) \[(0\.\d\d), (0\.\d\d)\]", lines[1])
    assert shown is not None, lines[1]
    for text, end in zip(shown.groups(), ("", "_lo", "_hi"), strict=True):
        assert (
            text == f"{float(rows[0]['overlap_ratio' + end]):.2f}"
        )  # the second digit of an interval that is .16 wide


def test_a_stored_trace_that_does_not_fit_is_made_anew_saying_why(call: Caller, tmp_path: Path) -> None:
    words = ["overlap", "--ckpts", "runs/good/checkpoint-5", *REPLAY, "--out", tmp_path]
    call(*words)
    done = call(*words, "--temperature", "2")
    assert "warning: trace" in done.err
    assert "temperature" in done.err
    assert done.rows[0]["student_entropy"] > 0


def test_whose_states(call: Caller, tmp_path: Path) -> None:
    def states(*words: str) -> set[str]:
        return {row["states"] for row in call("overlap", *words, "--out", tmp_path, "--format", "json").rows}

    one, teacher = "runs/good/checkpoint-5", ("--teacher", "teacher")
    assert states("--ckpts", one, *teacher, "--rollouts", "rollouts.jsonl") == {"unknown"}
    trace = tmp_path / "traces" / "good" / "teacher" / "step-5.parquet"
    assert read_trace(trace).provenance["labels"]["states"] == "unknown"
    assert states("--ckpts", "runs/good", *teacher, "--rollouts", "rollouts.jsonl") == {"fixed"}
    assert read_trace(trace).provenance["labels"]["states"] == "fixed"
    assert states("--ckpts", "runs/good", *teacher, "--rollouts", "stepped.jsonl") == {"own"}


def test_the_step_offset(call: Caller, tmp_path: Path) -> None:
    words = ("overlap", "--ckpts", "runs/good/checkpoint-5", "runs/good/checkpoint-20", "--teacher", "teacher",
             "--rollouts", "stepped.jsonl", "--out", tmp_path, "--format", "json")  # fmt: skip
    done = call(*words, "--step-offset", "15")
    assert done.code == 2
    (line,) = done.err.splitlines()
    for part in ("step 20 of run good", "--step-offset 15", "steps 5, 20,", "steps 5, 20, 100"):
        assert part in line
    assert list(tmp_path.iterdir()) == []
    assert call(*words[:3], *words[4:], "--step-offset", "15").rows[0]["n_rollouts"] == 8


def test_prompts_are_sampled_stored_and_used_again(
    call: Caller, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = ["overlap", "--ckpts", "runs/good/checkpoint-5", "runs/good/checkpoint-20", *SAMPLE, "--out", tmp_path]
    first = call(*words, "--teacher", "base")
    assert first.code == 0, first.err
    assert [(row["step"], row["teacher"]) for row in first.rows] == [
        (5, "base"), (20, "base"), (5, "teacher"), (20, "teacher"),
    ]  # fmt: skip
    assert {row["states"] for row in first.rows} == {"own"}
    assert all(row["accuracy"] is not None and row["n_rollouts"] == 8 for row in first.rows)
    rollouts = read_rollouts(tmp_path / "rollouts" / "good" / "step-5.parquet")
    assert {rollout.step for rollout in rollouts} == {5}
    assert sorted({rollout.prompt_id for rollout in rollouts}) == ["p0", "p1", "p2", "p3"]
    used = [
        read_trace(tmp_path / "traces" / "good" / teacher / "step-5.parquet").provenance["fingerprint"]["rollouts"]
        for teacher in ("base", "teacher")
    ]
    assert used[0] == used[1]  # every teacher scores the same samples
    request.getfixturevalue("no_models")
    assert call(*words).rows == [row for row in first.rows if row["teacher"] == "teacher"]


def test_other_sampling_settings_sample_anew(call: Caller, tmp_path: Path) -> None:
    stored = tmp_path / "rollouts" / "good" / "step-5.parquet"
    seen = set()
    for more in ([], ["--seed", "1"], ["--sample-temperature", "0.5"], []):
        call("overlap", "--ckpts", "runs/good/checkpoint-5", *SAMPLE, *more, "--out", tmp_path)
        seen.add(tuple(rollout.response_ids for rollout in read_rollouts(stored)))
    assert len(seen) == 3  # the last is the first


def test_a_manifest_names_everything_and_the_command_line_wins(workspace: Path, call: Caller, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "own"
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", run / "checkpoint-5")
    shutil.copytree(workspace / "base", tmp_path / "base")
    shutil.copy(workspace / "rollouts.jsonl", run)
    (run / "opd-probe.yaml").write_text(
        f"teacher: {workspace / 'teacher'}\nstudent: ../../base\nrollouts: rollouts.jsonl\nk: 4\nout: results\n"
        "format: json\n"
    )
    done = call("overlap", "--ckpts", run)
    assert [(row["step"], row["k"]) for row in done.rows] == [(0, 4), (5, 4)]
    assert (run / "results" / "overlap.csv").is_file()
    other = call("overlap", "--ckpts", run, "--k", "8", "--teacher", tmp_path / "base", "--out", tmp_path / "o")
    assert [(row["teacher"], row["k"]) for row in other.rows] == [("base", 8), ("base", 8)]
    assert other.rows[0]["overlap_ratio"] == 1.0  # step 0 is the base itself


def test_runs_may_differ_in_k(workspace: Path, call: Caller, tmp_path: Path) -> None:
    for name, k in (("a", 4), ("b", 8)):
        run = tmp_path / name
        shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", run / "checkpoint-5")
        (run / "opd-probe.yaml").write_text(f"k: {k}\n")
    done = call("overlap", "--ckpts", tmp_path / "a", tmp_path / "b", *REPLAY, "--out", tmp_path / "o")
    assert [row["k"] for row in done.rows] == [4, 8]
    assert {"overlap-k4.pdf", "overlap-k8.png"} <= files_below(tmp_path / "o")


def test_max_states_takes_whole_rollouts(call: Caller, tmp_path: Path) -> None:
    done = call("overlap", "--ckpts", "runs/good/checkpoint-5", *REPLAY, "--max-states", "20", "--out", tmp_path)
    assert (done.rows[0]["n_states"], done.rows[0]["n_rollouts"]) == (24, 4)  # drawn until 20 are reached


def test_text_rollouts_are_encoded_by_the_student(call: Caller, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"prompt": "1 2 3", "response": "4 5", "finish_reason": "stop"}\n')
    done = call("overlap", "--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--rollouts", file,
                "--out", tmp_path / "o", "--format", "json")  # fmt: skip
    assert done.rows[0]["n_states"] == 3  # EOS is one
    trace = read_trace(tmp_path / "o" / "traces" / "good" / "teacher" / "step-5.parquet")
    assert trace.column("token_id").tolist() == [7, 8, 1]
    assert trace.rollouts.column("token_source").to_pylist() == ["retokenized"]


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("source", [("--rollouts", "rollouts.jsonl"), ("--prompts", "prompts.jsonl")])
def test_a_dry_run_says_what_it_would_take_and_makes_nothing(
    call: Caller, tmp_path: Path, source: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    done = call("overlap", "--ckpts", "runs/*", "--teacher", "teacher", *source, "--max-new-tokens", "6",
                "--out", out, "--dry-run", "--format", "json")  # fmt: skip
    assert done.code == 0
    *rows, total = done.rows
    assert len(rows) == 6
    exact = source[0] == "--rollouts"
    assert {row["states"] for row in rows} == {48 if exact else 96}
    assert {row["states_are"] for row in rows} == {"exact" if exact else "at most"}
    assert total["states"] == sum(row["states"] for row in rows)
    assert total["bytes"] == sum(row["bytes"] for row in rows) > 0
    assert total["seconds"] > 0
    assert not out.exists()


def test_a_dry_run_takes_responses_to_be_as_long_as_stored_ones(call: Caller, tmp_path: Path) -> None:
    words = ("--teacher", "teacher", "--prompts", "prompts.jsonl", "--max-new-tokens", "6", "--out", tmp_path)
    made = call("overlap", "--ckpts", "runs/good/checkpoint-5", *words, "--format", "json")
    assert made.code == 0, made.err
    *rows, total = call("overlap", "--ckpts", "runs/good", *words, "--dry-run", "--format", "json").rows
    assert {row["states_are"] for row in (*rows, total)} == {"about"}
    assert {row["states"] for row in rows} == {made.rows[0]["n_states"]}
    other = call("overlap", "--ckpts", "runs/bad/checkpoint-5", *words, "--dry-run", "--format", "json").rows
    assert {row["states_are"] for row in other} == {"at most"}


def test_a_step_without_rollouts_is_left_out_with_a_warning(call: Caller, workspace: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (workspace / "rollouts.jsonl").read_text().splitlines()]
    place = write_lines(
        tmp_path / "stepped.jsonl",
        [{**line, "id": f"{line['id']}-{step}", "step": step} for step in (5, 100) for line in lines[:4]],
    )
    words = ("--teacher", "teacher", "--rollouts", place, "--out", tmp_path / "o", "--format", "json")
    done = call("overlap", "--ckpts", "runs/good", *words)
    assert done.code == 0, done.err
    assert [row["step"] for row in done.rows] == [5, 100]
    assert f"run good: left out step 20, of which {place} has no rollouts" in done.err
    again = call("overlap", "--ckpts", "runs/good", *words)  # finished as it is
    assert [row["step"] for row in again.rows] == [5, 100]
    none = call("overlap", "--ckpts", "runs/good/checkpoint-20", *words)
    assert (none.code, len(none.errors)) == (2, 1)


def test_a_missing_teacher_and_missing_prompts_are_said_together(call: Caller, tmp_path: Path) -> None:
    done = call("overlap", "--ckpts", "runs/good", "--out", tmp_path)
    assert (done.code, len(done.errors)) == (2, 1)
    assert "no teacher, and neither prompts nor rollouts; give --teacher" in done.err
    assert "--prompts FILE" in done.err


@pytest.mark.usefixtures("no_models")
def test_a_dry_run_counts_the_student_once_for_all_teachers(call: Caller, tmp_path: Path) -> None:
    done = call("overlap", "--ckpts", "runs/good/checkpoint-5", *REPLAY, "--teacher", "base",
                "--out", tmp_path / "out", "--dry-run")  # fmt: skip
    first, second, total = done.rows
    assert first["seconds"] == pytest.approx(2 * second["seconds"])  # models of one size
    assert total["seconds"] == pytest.approx(3 * second["seconds"])


@pytest.mark.usefixtures("no_models")
def test_a_dry_run_counts_a_teacher_once_where_checkpoints_share_it(call: Caller, tmp_path: Path) -> None:
    words = ("overlap", "--ckpts", "runs/good", "--teacher", "teacher", "--format", "json", "--dry-run")
    for file, shared in (("rollouts.jsonl", True), ("stepped.jsonl", False)):
        first, *others, _ = call(*words, "--rollouts", file, "--out", tmp_path).rows
        for row in others:
            assert first["seconds"] == pytest.approx((2 if shared else 1) * row["seconds"])  # models of one size


def test_an_interrupt_keeps_what_is_finished(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opd_probe.cli import progress
    from opd_probe.cli.progress import StderrProgress

    monkeypatch.setattr(progress, "INTERVAL", float("inf"))  # no line of it, however slow the machine is
    words = ["overlap", "--ckpts", "runs/good", *REPLAY, "--out", tmp_path]
    tasks: list[str] = []

    def interrupt(_: StderrProgress, task: str) -> None:
        tasks.append(task)
        if sum(task.startswith("replay") for task in tasks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StderrProgress, "begin", interrupt)
        stopped = call(*words)
    assert stopped.code == 130
    assert stopped.out == ""
    assert stopped.err == "interrupted; finished traces are kept, run the same command to resume\n"
    (kept,) = (tmp_path / "traces").rglob("*.parquet")
    before = kept.stat().st_mtime_ns
    assert len(call(*words).rows) == 3
    assert kept.stat().st_mtime_ns == before
