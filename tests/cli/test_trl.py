"""A run that TRL itself trained, looked into as its user would."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import DistillationConfig, DistillationTrainer

from tests.cli.workspace import Caller, write_lines
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer


def train(root: Path, run: Path, adapter: LoraConfig | None = None) -> None:
    """Two optimiser steps of on-policy distillation, each saved; of a whole model, or of an adapter."""
    tokenizer = tiny_tokenizer(64, chat_template=CHAT_TEMPLATE)
    teacher = tiny_model(64, seed=1)
    save_checkpoint(root / "student", tiny_model(64, seed=0), tokenizer)
    save_checkpoint(root / "teacher", teacher, tokenizer)
    settings = DistillationConfig(
        output_dir=str(run),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    prompts = Dataset.from_list([{"prompt": f"{i} {i + 1}"} for i in range(8)])
    DistillationTrainer(
        model=str(root / "student"),
        teacher_model=teacher,
        args=settings,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=adapter,
    ).train()


def test_a_run_of_the_distillation_trainer(call: Caller, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "trl"
    train(tmp_path, run)
    saved = sorted(path.name for path in run.iterdir() if path.is_dir())
    assert saved == ["checkpoint-1", "checkpoint-2"]
    assert json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{i} {i + 1}"} for i in range(3)])
    (run / "opd-probe.yaml").write_text(
        "teacher: ../../teacher\nstudent: ../../student\nprompts: ../../prompts.jsonl\nmax_new_tokens: 5\n"
    )
    done = call("overlap", "--ckpts", run, "--out", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.err
    assert [(row["run"], row["step"], row["teacher"], row["states"]) for row in done.rows] == [
        ("trl", step, "teacher", "own") for step in (0, 1, 2)
    ]
    assert len({row["reverse_kl"] for row in done.rows}) == 3
    assert all(0 < row["overlap_ratio"] <= 1 for row in done.rows)
    done = call("ckpts", tmp_path, "--format", "json")
    assert (done.code, done.err) == (0, "")
    listed = [(row["run"], row["step"], row["format"], row["tokenizer"]) for row in done.rows]
    whole = [(model, None, "huggingface", True) for model in ("student", "teacher")]
    assert listed == [whole[0], whole[1], *(("trl", step, "huggingface", True) for step in (1, 2))]


def test_a_run_that_trains_an_adapter(call: Caller, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "lora"
    train(tmp_path, run, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    done = call("ckpts", tmp_path / "runs", "--format", "json")
    assert (done.code, done.err) == (0, "")
    base = str(tmp_path / "student")
    assert [(row["run"], row["step"], row["format"], row["base"]) for row in done.rows] == [
        ("lora", step, "peft", base) for step in (1, 2)
    ]
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{i} {i + 1}"} for i in range(2)])
    words = ["overlap", "--ckpts", run, "--teacher", tmp_path / "teacher", "--prompts", tmp_path / "prompts.jsonl"]
    done = call(*words, "--max-new-tokens", "4", "--out", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.err
    assert len({row["reverse_kl"] for row in done.rows}) == 2
    (tmp_path / "student").rename(tmp_path / "elsewhere")
    done = call("ckpts", tmp_path / "runs", "--format", "json")
    assert done.code == 2
    assert all(row["refused"] == f"its base model {base} is not there; name it with --base MODEL" for row in done.rows)
    assert call("ckpts", tmp_path / "runs", "--base", tmp_path / "elsewhere").code == 0
