"""Checkpoints of every trainer, listed and measured through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.workspace import Caller, write_lines
from tests.training_jobs import VOCABULARY

SAMPLED = [
    {"id": f"r{i}", "prompt_ids": [3 + i, 4, 5], "response_ids": [(7 * i + j) % (VOCABULARY - 3) + 3 for j in range(5)]}
    for i in range(3)
]


def test_a_run_of_verl_gives_the_numbers_of_the_same_models_saved_whole(
    call: Caller, jobs: Path, tmp_path: Path
) -> None:
    rollouts = write_lines(tmp_path / "rollouts.jsonl", SAMPLED)
    rows = {}
    for run in ("fsdp2", "whole"):
        words = ["overlap", "--ckpts", jobs / run, "--teacher", jobs / "base", "--rollouts", rollouts]
        done = call(*words, "--out", tmp_path / run, "--format", "json")
        assert done.code == 0, done.err
        rows[run] = [{name: value for name, value in row.items() if name != "run"} for row in done.rows]
    assert [row["step"] for row in rows["fsdp2"]] == [5, 10]
    assert rows["fsdp2"] == rows["whole"]


def test_each_checkpoint_samples_its_own_responses(call: Caller, jobs: Path, tmp_path: Path) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{i} {i + 1}"} for i in range(2)])
    words = ["overlap", "--prompts", prompts, "--max-new-tokens", "4", "--format", "json"]
    step, teacher = jobs / "fsdp2" / "global_step_10", jobs / "hsdp1" / "global_step_5"
    one = call(*words, "--ckpts", step, "--teacher", teacher, "--out", tmp_path / "one")
    known = [(row["run"], row["step"], row["teacher"], row["states"]) for row in one.rows]
    assert known == [("fsdp2", 10, "hsdp1/global_step_5", "own")]
    teachers = ["--teacher", teacher / "actor", "--teacher", teacher]
    other = call(*words, "--ckpts", step / "actor", step, *teachers, "--out", tmp_path / "other")
    assert one.rows == other.rows


def test_the_manifests_student_has_the_configuration_of_a_distributed_checkpoint(
    call: Caller, jobs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "prime"
    shutil.copytree(jobs / "prime", run)
    rollouts = write_lines(tmp_path / "rollouts.jsonl", SAMPLED)
    words = ["overlap", "--ckpts", run, "--teacher", jobs / "whole" / "global_step_10", "--rollouts", rollouts]
    done = call(*words, "--out", tmp_path / "out")
    assert done.code == 2
    assert "weights without a config.json" in done.errors[-1]
    assert "--base MODEL" in done.errors[-1]
    assert not (tmp_path / "out").exists()
    (run / "opd-probe.yaml").write_text(f"student: {jobs / 'base'}\n")
    done = call(*words, "--out", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.err
    at_0, at_5 = ({name: value for name, value in row.items() if name != "step"} for row in done.rows)
    assert at_0 == at_5  # the base is the model of step 5


def test_the_list_of_what_jobs_left(call: Caller, jobs: Path) -> None:
    done = call("ckpts", jobs, "--base", jobs / "base", "--format", "json")
    assert (done.code, done.err) == (0, "")
    rows = [row for row in done.rows if Path(row["path"]).parent.name != "odd"]
    found = {(row["run"], row["step"]): row for row in rows}
    whole = {"dtype": "float32", "tokenizer": True, "base": None, "refused": None}
    assert {key: found["fsdp2", 5][key] for key in whole} == whole
    assert found["hsdp2", 5]["dtype"] == "bfloat16"
    assert {row["format"] for row in rows} == {"verl-fsdp", "verl-lora", "dcp", "huggingface", "peft"}
    tied = VOCABULARY * 32  # shards hold the tied output layer once more
    assert found["fsdp1", 5]["parameters"] == found["whole", 5]["parameters"] + tied
    assert found["lora_only", 5]["parameters"] == found["peft", None]["parameters"]
    assert found["lora_only", 5]["base"] == found["prime", 5]["base"] == str(jobs / "base")
    shards = (jobs / "fsdp1/global_step_5/actor").glob("model_*.pt")
    assert found["fsdp1", 5]["bytes"] == sum(file.stat().st_size for file in shards)
    assert all(Path(row["path"]).name.startswith("global_step_") for row in rows if row["format"] == "verl-fsdp")


def test_the_list_is_a_table_for_eyes(call: Caller, jobs: Path, tmp_path: Path) -> None:
    shutil.copytree(jobs / "fsdp2", tmp_path / "fsdp2")
    (tmp_path / "fsdp2/global_step_10/actor/model_world_size_4_rank_2.pt").unlink()
    done = call("ckpts", tmp_path)
    assert (done.code, done.err) == (0, "")
    header, row, _, refused = done.out.splitlines()
    assert header.split() == ["run", "step", "format", "dtype", "parameters", "size", "base", "tokenizer"]
    assert row.split()[:4] == ["fsdp2", "5", "verl-fsdp", "float32"]
    assert refused.startswith(f"refused {tmp_path}/fsdp2/global_step_10: ")
    assert "without model_world_size_4_rank_2.pt (1 of 4 ranks missing)" in refused


def test_the_list_says_how_unusual_names_were_read(call: Caller, jobs: Path, tmp_path: Path) -> None:
    for name in ("first/epoch_1", "first/epoch_2", "second/mine-100", "second/mine-200", "third", "fourth"):
        shutil.copytree(jobs / "base", tmp_path / name)
    lines = call("ckpts", tmp_path).out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["first", "epoch", "1"], ["first", "epoch", "2"]]
    assert lines[-3:] == [
        "first: read as epoch in its name",
        "second: read as step, the number that tells it from its neighbours",
        "2 checkpoints of no known step; --step-pattern REGEX reads it from their names",
    ]
    wrong = call("ckpts", tmp_path, "--step-pattern", "ourth")
    assert (wrong.code, wrong.errors) == (2, [wrong.errors[-1]])
    assert "has no group" in wrong.errors[-1]


def test_nothing_that_can_be_used(call: Caller, jobs: Path, tmp_path: Path) -> None:
    assert call("ckpts", tmp_path).code == 2
    assert "no such path" in call("ckpts", tmp_path / "none").err
    assert "~nobody-of-this-name/runs: no such path" in call("ckpts", "~nobody-of-this-name/runs").err
    assert "an empty path" in call("ckpts", "").err
    actor = tmp_path / "run/global_step_5/actor"
    actor.mkdir(parents=True)
    shutil.copy(jobs / "fsdp2/global_step_5/actor/optim_world_size_4_rank_0.pt", actor)
    done = call("ckpts", tmp_path, "--format", "json")
    assert done.code == 2
    (row,) = done.rows
    assert "optimiser state without weights" in row["refused"]
    (line,) = done.errors
    assert row["refused"] in line
    done = call("overlap", "--ckpts", tmp_path / "run", "--teacher", jobs / "base", "--rollouts", "x")
    assert done.code == 2
    assert "optimiser state without weights" in done.err


@pytest.mark.parametrize("run", ["fsdp2", "lora", "prime"])
def test_vllm_refuses_what_it_cannot_read(call: Caller, jobs: Path, tmp_path: Path, run: str) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "1 2"}])
    words = ["rollout", "--ckpts", jobs / run, "--base", jobs / "base", "--prompts", prompts, "--sampler", "vllm"]
    done = call(*words, "--out", tmp_path / "r.jsonl")
    assert done.code == 2
    assert "which vLLM does not read" in done.errors[-1]
