"""``mass``, ``align``, ``rollout`` and ``show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_probe.curves.bounds import bounds_row
from opd_probe.rollouts.files import read_rollouts
from tests.cli.workspace import Caller, files_below, run_command
from tests.samples import as_served, grouped_trace

REPLAY = ("--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--format", "json")


@pytest.fixture(scope="module")
def out(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of one run at K = 32."""
    from opd_probe.cli.main import main

    directory = tmp_path_factory.mktemp("traces")
    words = ["overlap", "--ckpts", str(workspace / "runs" / "good"), "--teacher", str(workspace / "teacher"),
             "--rollouts", str(workspace / "rollouts.jsonl"), "--trace-k", "32", "--out", str(directory)]  # fmt: skip
    assert main(words) == 0
    return directory


def test_mass_from_traces(call: Caller, out: Path, tmp_path: Path) -> None:
    done = call("mass", "--traces", out, "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    assert [(row["step"], row["k"]) for row in done.rows] == [(s, k) for s in (5, 20, 100) for k in range(1, 33)]
    masses = [row["student_topk_mass"] for row in done.rows[:32]]
    assert masses == sorted(masses)
    for name in ("student_overlap_mass_lo", "teacher_topk_mass_hi", "overlap_ratio_n", "student_k_for_0.97_median",
                 "teacher_k_for_0.99_share_beyond"):  # fmt: skip
        assert name in done.rows[0]
    assert done.rows[0]["states"] == "fixed"
    assert files_below(tmp_path) == {"mass.csv", "mass.pdf", "mass.png"}
    assert len(call("mass", "--traces", out, "--out", tmp_path).out.splitlines()) == 4


def test_mass_from_checkpoints_uses_their_traces(call: Caller, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd_probe.jobs.pool.load_model", None)
    words = ("--ckpts", "runs/good", *REPLAY, "--trace-k", "32", "--out", out)
    assert len(call("mass", *words).rows) == 96
    assert len(call("align", *words).rows) == 3


def test_align_over_steps_and_positions(call: Caller, out: Path, tmp_path: Path) -> None:
    steps = call("align", "--traces", out, "--out", tmp_path, "--format", "json", "--k", "8").rows
    assert [(row["step"], row["k"]) for row in steps] == [(5, 8), (20, 8), (100, 8)]
    assert files_below(tmp_path) == {"align.csv", "align.pdf", "align.png"}
    done = call("align", "--traces", out, "--x", "position", "--bins", "3", "--out", tmp_path, "--format", "json")
    assert [(row["step"], row["position_lo"], row["position_hi"]) for row in done.rows] == [
        (step, low, low + 1) for step in (5, 20, 100) for low in (0, 2, 4)
    ]
    mean = sum(row["overlap_ratio"] for row in done.rows[:3]) / 3
    whole = call("overlap", "--traces", out, "--out", tmp_path, "--format", "json").rows[0]
    assert mean == pytest.approx(whole["overlap_ratio"])


def test_align_along_the_response(call: Caller, out: Path, tmp_path: Path) -> None:
    done = call("align", "--traces", out, "--x", "depth", "--bins", "3", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    assert [(row["step"], row["position_lo"]) for row in done.rows] == [(s, p) for s in (5, 20, 100) for p in (0, 2, 4)]
    for row in done.rows:
        assert row["sampled_reward_q05"] <= row["sampled_reward_q50"] <= row["sampled_reward_q95"]
    assert files_below(tmp_path) == {"depth.csv", "depth-signal.csv", "depth.pdf", "depth.png"}


def test_traces_may_be_files_and_directories(call: Caller, out: Path, tmp_path: Path) -> None:
    one = out / "traces" / "good" / "teacher" / "step-5.parquet"
    more = ("--out", tmp_path, "--format", "json")
    assert [row["step"] for row in call("align", "--traces", one, one, *more).rows] == [5]
    assert len(call("align", "--traces", one.parent, *more).rows) == 3


def test_rollout_makes_a_file_that_overlap_replays(call: Caller, tmp_path: Path) -> None:
    file = tmp_path / "sampled.jsonl"
    done = call("rollout", "--ckpts", "runs/good", "--prompts", "prompts.jsonl", "--teacher", "teacher",
                "--max-new-tokens", "5", "--num-rollouts", "2", "--out", file, "--format", "json")  # fmt: skip
    assert [(row["step"], row["n_rollouts"]) for row in done.rows] == [(5, 8), (20, 8), (100, 8)]
    rollouts = read_rollouts(file)
    assert len({rollout.id for rollout in rollouts}) == 24
    assert all(rollout.logprobs is not None for rollout in rollouts)
    assert {str(rollout.sampler).split()[0] for rollout in rollouts} == {"transformers"}
    words = ("--ckpts", "runs/good", "--teacher", "teacher", "--rollouts", file, "--out", tmp_path / "o")
    rows = call("overlap", *words, "--format", "json").rows
    assert {row["states"] for row in rows} == {"own"}


def test_rollout_of_one_checkpoint_without_a_teacher(call: Caller, tmp_path: Path) -> None:
    file = tmp_path / "sampled.parquet"
    done = call("rollout", "--ckpts", "runs/good/checkpoint-5", "--prompts", "prompts.jsonl", "--max-new-tokens", "5",
                "--num-rollouts", "1", "--out", file)  # fmt: skip
    assert done.code == 0, done.err
    assert [rollout.id for rollout in read_rollouts(file)] == ["p0/0", "p1/0", "p2/0", "p3/0"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--ckpts", "runs/*", "--prompts", "prompts.jsonl"], "checkpoints of 2 runs"),
        (["--ckpts", "runs/good"], "no prompts"),
        (["--ckpts", "runs/good", "--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl: no such file"),
    ],
)
def test_rollout_refuses(call: Caller, tmp_path: Path, words: list[str], part: str) -> None:
    done = call("rollout", *words, "--out", tmp_path / "r.jsonl")
    assert done.code == 2
    (line,) = done.errors
    assert part in line
    assert list(tmp_path.iterdir()) == []


def test_rollout_needs_a_file_name(call: Caller, tmp_path: Path) -> None:
    for more in ([], ["--out", tmp_path / "r.csv"]):
        done = call("rollout", "--ckpts", "runs/good/checkpoint-5", "--prompts", "prompts.jsonl", *more)
        assert done.code == 2
        assert "expected the .jsonl or .parquet file to write" in done.err


def test_show(call: Caller, out: Path) -> None:
    trace = out / "traces" / "good" / "teacher" / "step-5.parquet"
    shown = json.loads(call("show", trace, "--format", "json", "--k", "4").out)
    assert shown["provenance"]["labels"] == {"run": "good", "step": 5, "teacher": "teacher", "states": "fixed"}
    assert shown["provenance"]["K"] == 32
    assert shown["summary"]["k"] == 4
    text = call("show", trace).out
    assert "provenance.labels.run" in text
    assert "summary.overlap_ratio" in text


def test_a_closed_pipe_is_quiet(out: Path, tmp_path: Path) -> None:
    trace = out / "traces" / "good" / "teacher" / "step-5.parquet"
    done = run_command(["show", trace, "--format", "json", "| true"], tmp_path, shell=True)
    assert (done.code, done.errors) == (0, [])


def test_rows_of_served_teachers_have_bounds(call: Caller, tmp_path: Path) -> None:
    rows = [{"prompt_id": f"p{index}", "n_states": 4} for index in range(8)]
    trace = as_served(grouped_trace(rows, k=16))
    trace.save(tmp_path / "served.parquet")
    done = call("overlap", "--traces", tmp_path / "served.parquet", "--out", tmp_path / "o", "--format", "json")
    assert done.code == 0, done.err
    (row,) = done.rows
    assert row["reverse_kl"] is None
    assert row["teacher_entropy_least"] == pytest.approx(bounds_row(trace)["teacher_entropy_least"])
