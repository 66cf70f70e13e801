"""Runs, teachers, prompts and rollouts as a user has them, with tiny real models; and ways to call the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_probe.cli.main import main
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

VOCABULARY = 64
STEPS = (20, 100, 5)


@dataclass
class Outcome:
    """What a user sees of one command."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are no warnings."""
        return [line for line in self.err.splitlines() if not line.startswith("warning: ")]


@dataclass
class Caller:
    """Calls the command in this process, from a working directory."""

    capsys: pytest.CaptureFixture[str]
    directory: Path
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *words: str | Path) -> Outcome:
        self.monkeypatch.chdir(self.directory)
        self.capsys.readouterr()
        code = main([str(word) for word in words])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


def run_command(
    words: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None, shell: bool = False
) -> Outcome:
    """Call the installed command in a process of its own; with ``shell`` the shell expands what is typed."""
    program = Path(sys.executable).with_name("opd-probe")
    command: Any = [program, *words]
    if shell:
        command = " ".join([str(program), *(str(word) for word in words)])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **(environment or {})},
        shell=shell,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def build(root: Path) -> Path:
    """``runs/good`` and ``runs/bad`` with checkpoints 5, 20, 100; ``teacher``, ``base``, prompts and rollouts."""
    tokenizer = tiny_tokenizer(VOCABULARY)
    save_checkpoint(root / "teacher", tiny_model(VOCABULARY, seed=1), tokenizer)
    save_checkpoint(root / "base", tiny_model(VOCABULARY, seed=0), tokenizer)
    for seed, run in enumerate(("good", "bad"), start=2):
        for step in STEPS:
            model = tiny_model(VOCABULARY, seed=seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.001 * step)
            save_checkpoint(root / "runs" / run / f"checkpoint-{step}", model, tokenizer, step)
    (root / "runs" / "notes.txt").write_text("a note")
    prompts = [{"id": f"p{i}", "prompt": f"{i} {i + 1} {i + 2}", "answer": str(i)} for i in range(4)]
    write_lines(root / "prompts.jsonl", prompts)
    rollouts = [
        {"id": f"r{i}", "prompt_ids": [3 + i // 2, 4, 5], "response_ids": [(7 * i + j) % 60 + 3 for j in range(6)]}
        for i in range(8)
    ]
    write_lines(root / "rollouts.jsonl", rollouts)
    stepped = [{**row, "id": f"{row['id']}/{step}", "step": step} for row in rollouts for step in STEPS]
    write_lines(root / "stepped.jsonl", stepped)
    return root


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
