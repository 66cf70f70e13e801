"""One real training by TRL with the callback in it, shared by the tests that look at what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer

from opd_probe.integrations.trl import OverlapCallback
from tests.cli.workspace import Caller
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

PROMPTS = [{"prompt": f"{i} {i + 1} {i + 2}", "answer": str(i)} for i in range(3)]
OPTIONS: dict[str, Any] = {"k": 4, "trace_k": 16, "num_rollouts": 2, "max_new_tokens": 6}


@dataclass
class Training:
    """A finished training: where it went, its trainer, and the final weights."""

    directory: Path
    trainer: DistillationTrainer

    @property
    def losses(self) -> list[tuple[float, float]]:
        """(loss, gradient norm) of every logged step."""
        rows = self.trainer.state.log_history
        return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]

    def logged(self, name: str) -> dict[int, float]:
        """A curve by step."""
        return {row["step"]: row[name] for row in self.trainer.state.log_history if name in row}


def make_trainer(models: Path, directory: Path, **more: Any) -> DistillationTrainer:
    """On-policy distillation of a tiny student on the CPU, four steps, saved every second one."""
    settings: dict[str, Any] = {
        "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1, "max_completion_length": 4, "learning_rate": 1e-2, "use_cpu": True,
        "bf16": False, "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    adapter, words = more.pop("peft_config", None), more.pop("words", 60)
    return DistillationTrainer(
        model=str(models / "student"),
        teacher_model=str(models / "teacher"),
        args=DistillationConfig(output_dir=str(directory), **(settings | more)),
        train_dataset=Dataset.from_list([{"prompt": f"{i} {i + 1}"} for i in range(8)]),
        peft_config=adapter,
        processing_class=tiny_tokenizer(words, chat_template=CHAT_TEMPLATE),
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``student`` and ``teacher``, whose output layers are wider than their tokenizers."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(60, chat_template=CHAT_TEMPLATE)
    save_checkpoint(root / "student", tiny_model(61, seed=0), tokenizer)
    save_checkpoint(root / "teacher", tiny_model(61, seed=1), tokenizer)
    return root


@pytest.fixture(scope="session")
def watched(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training that the callback watches, logged to tensorboard."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(root / "events"))
        trainer = make_trainer(models, root / "watched", report_to=["tensorboard"])
        trainer.add_callback(OverlapCallback(trainer, PROMPTS, every=2, **OPTIONS))
        trainer.train()
    return Training(root / "watched", trainer)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, tmp_path, monkeypatch)
