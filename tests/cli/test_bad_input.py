"""Bad input: one line, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from opd_probe.trace.parquet import VERSION_KEY
from tests.cli.workspace import VOCABULARY, Caller, run_command, write_lines
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

GOOD = {"prompt_ids": [3, 4], "response_ids": [5, 6, 7]}
RUN = "runs/good/checkpoint-5"


@dataclass
class Desk:
    """The workspace to read from and a directory to put bad input into."""

    workspace: Path
    own: Path

    def lines(self, name: str, *rows: object) -> str:
        return str(write_lines(self.own / name, rows))

    def text(self, name: str, text: str) -> str:
        (self.own / name).write_text(text)
        return str(self.own / name)


Make = Callable[[Desk], list[str]]


def overlap(ckpts: str = RUN, teacher: str = "teacher", rollouts: str = "rollouts.jsonl") -> list[str]:
    return ["overlap", "--ckpts", ckpts, "--teacher", teacher, "--rollouts", rollouts]


def other_tokenizer(desk: Desk) -> list[str]:
    words = [str(number) for number in range(VOCABULARY - 3)]
    words[7] = "seven"
    save_checkpoint(desk.own / "other", tiny_model(VOCABULARY, seed=1), tiny_tokenizer(words=words))
    return overlap(teacher=str(desk.own / "other"))


def truncated(desk: Desk) -> list[str]:
    path = desk.own / "cut" / "checkpoint-5"
    shutil.copytree(desk.workspace / RUN, path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return overlap(str(desk.own / "cut"))


def not_a_number(desk: Desk) -> list[str]:
    model = tiny_model(VOCABULARY)
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = torch.nan
    save_checkpoint(desk.own / "nan" / "checkpoint-5", model, tiny_tokenizer(VOCABULARY))
    return overlap(str(desk.own / "nan"))


def unwritable(desk: Desk) -> list[str]:
    return [*overlap(), "--out", desk.text("file", "") + "/out"]


def unknown_version(desk: Desk) -> list[str]:
    table = pa.table({"x": [1]}).replace_schema_metadata({VERSION_KEY: b"999"})
    pq.write_table(table, desk.own / "t.parquet")
    return ["mass", "--traces", str(desk.own / "t.parquet")]


def manifest(text: str) -> Make:
    def make(desk: Desk) -> list[str]:
        shutil.copytree(desk.workspace / RUN, desk.own / "run" / "checkpoint-5")
        desk.text("run/opd-probe.yaml", text)
        return ["overlap", "--ckpts", str(desk.own / "run"), "--rollouts", "rollouts.jsonl"]

    return make


def directory(*names: str) -> Make:
    def make(desk: Desk) -> list[str]:
        for name in names:
            (desk.own / "d" / name).mkdir(parents=True)
        return overlap(str(desk.own / "d"))

    return make


def rollouts(*rows: object) -> Make:
    return lambda desk: overlap(rollouts=desk.lines("bad.jsonl", *rows))


def adapter_through_vllm(desk: Desk) -> list[str]:
    (desk.own / "run" / "checkpoint-5").mkdir(parents=True)
    desk.text("run/checkpoint-5/adapter_config.json", json.dumps({"base_model_name_or_path": "base"}))
    desk.text("run/checkpoint-5/adapter_model.safetensors", "")
    return through_vllm(str(desk.own / "run"))


def through_vllm(ckpts: str = RUN) -> list[str]:
    return ["overlap", "--ckpts", ckpts, "--teacher", "teacher", "--prompts", "prompts.jsonl", "--sampler", "vllm"]


CASES: dict[str, tuple[Make, list[str]]] = {
    "no such path": (lambda _: overlap("runs/nowhere"), ["--ckpts runs/nowhere: no such path", "checkpoint-N"]),
    "no such teacher": (lambda _: overlap(teacher="./none"), ["--teacher ./none: no such path"]),
    "no such rollouts": (lambda _: overlap(rollouts="none.jsonl"), ["--rollouts none.jsonl: no such file"]),
    "no checkpoint": (directory("logs", "code"), ["found code/, logs/", "expected a checkpoint"]),
    "verl layout without weights": (directory("global_step_5/actor"), ["found global_step_5/", "model_world_size_W_"]),
    "teacher is no checkpoint": (lambda _: overlap(teacher="runs"), ["checkpoint runs", "holds no checkpoint"]),
    "no teacher": (
        lambda _: ["overlap", "--ckpts", RUN, "--rollouts", "rollouts.jsonl"],
        ["run good: no teacher", "--teacher PATH_OR_HUB_ID", "teacher: PATH_OR_HUB_ID", "runs/good/opd-probe.yaml"],
    ),
    "no rollouts": (
        lambda _: ["overlap", "--ckpts", RUN, "--teacher", "teacher"],
        ["neither rollouts nor prompts", "--rollouts FILE", "--prompts FILE"],
    ),
    "both sources": (lambda _: [*overlap(), "--prompts", "prompts.jsonl"], ["--rollouts and --prompts"]),
    "ckpts and traces": (lambda _: [*overlap(), "--traces", "x"], ["--ckpts and --traces"]),
    "teacher and traces": (lambda _: ["mass", "--traces", "x", "--teacher", "y"], ["--teacher and --traces"]),
    "weights that are NaN": (not_a_number, ["rollout 'r", "position 0", "NaN"]),
    "tokenizers differ": (other_tokenizer, ["id 10", "'7'", "'seven'"]),
    "k = 0": (lambda _: [*overlap(), "--k", "0"], ["option --k", "got 0"]),
    "k beyond the vocabulary": (lambda _: [*overlap(), "--k", "65"], ["k = 65", "shared vocabulary of 64"]),
    "k beyond the trace": (lambda _: [*overlap(), "--k", "9", "--trace-k", "8"], ["k = 9", "--trace-k"]),
    "empty rollouts": (rollouts(), ["bad.jsonl", "empty"]),
    "broken JSON": (
        lambda desk: overlap(rollouts=desk.text("bad.jsonl", json.dumps(GOOD) + '\n{"prompt_ids": [1,\n')),
        ["bad.jsonl", "line 2"],
    ),
    "ids outside the vocabulary": (rollouts({**GOOD, "response_ids": [5, 99]}), ["99", "vocabulary"]),
    "too long": (rollouts({**GOOD, "response_ids": [5] * 200}), ["128", "positions"]),
    "no state": (rollouts({**GOOD, "response_ids": []}), ["none of the 1 has a state"]),
    "steps that do not match": (rollouts({**GOOD, "step": 7}), ["steps 5,", "steps 7", "--step-offset"]),
    "unwritable output": (unwritable, ["output", "not a directory", "--out"]),
    "unknown trace version": (unknown_version, ["t.parquet", "version 999"]),
    "no trace": (lambda _: ["mass", "--traces", "runs"], ["--traces runs", "no trace"]),
    "truncated weights": (truncated, ["model.safetensors", "not a whole safetensors file"]),
    "unknown key": (manifest("techer: x"), ["opd-probe.yaml", "'techer'", "accepted keys", "teacher_template"]),
    "bad value": (manifest("teacher: ../none/x/y"), ["opd-probe.yaml", "'teacher'", "no such path"]),
    "template": (manifest("teacher: a/b\nteacher_template: t.jinja"), ["'teacher_template'", "no such path"]),
    "device": (lambda _: [*overlap(), "--device", "cuda:9"], ["cuda:9"]),
    "prompts too long for the models": (
        lambda _: ["overlap", "--ckpts", RUN, "--teacher", "teacher", "--prompts", "prompts.jsonl"],
        ["positions", "--max-new-tokens"],
    ),
    "an adapter through vLLM": (adapter_through_vllm, ["sampler vllm", "checkpoint-5 is an adapter"]),
}  # fmt: skip


if find_spec("vllm") is None:
    CASES["no vLLM"] = (lambda _: through_vllm(), ["sampler vllm: vllm is not installed", "pip install vllm"])
    CASES["no vLLM to dry-run"] = (lambda _: [*through_vllm(), "--dry-run"], CASES["no vLLM"][1])


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_half_written(call: Caller, workspace: Path, tmp_path: Path, case: str) -> None:
    make, parts = CASES[case]
    (tmp_path / "own").mkdir()
    words = make(Desk(workspace, tmp_path / "own"))
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    done = call(*words)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.errors
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_in_a_process_of_its_own(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    words = [*truncated(Desk(workspace, tmp_path / "own")), "--out", str(tmp_path / "out")]
    done = run_command(words, workspace)
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    assert line.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_later_mistake_keeps_finished_traces_whole(call: Caller, workspace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (5, 20):
        shutil.copytree(workspace / "runs" / "good" / f"checkpoint-{step}", run / f"checkpoint-{step}")
    weights = run / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = call(*overlap(str(run)), "--out", tmp_path / "out")
    assert done.code == 2
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["step-5.parquet"]


def test_no_error_for_what_is_only_unusual(call: Caller, tmp_path: Path, workspace: Path) -> None:
    """Output layers of different width, and rollouts without a state beside one that has some."""
    save_checkpoint(tmp_path / "wide", tiny_model(VOCABULARY + 8, seed=1), tiny_tokenizer(VOCABULARY))
    masked = {**GOOD, "response_mask": [0, 0, 0]}
    file = write_lines(tmp_path / "r.jsonl", [GOOD, {**GOOD, "response_ids": []}, masked])
    done = call(*overlap(teacher=str(tmp_path / "wide"), rollouts=str(file)), "--k", "1",
                "--out", tmp_path / "out", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert (done.rows[0]["n_rollouts"], done.rows[0]["n_skipped"], done.rows[0]["n_states"]) == (1, 2, 3)
    assert done.errors == [line for line in done.errors if line.startswith("wrote ")]
    assert "warning: k = 1" in done.err
    assert (workspace / "teacher").is_dir()
