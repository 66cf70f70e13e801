"""The demo on its shipped base models, a few steps long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_probe.lab import demo
from opd_probe.lab.evaluate import accuracy
from opd_probe.lab.models import load_model
from opd_probe.lab.task import encode, grade


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "runs"
    demo.run_demo(out, steps=3, prompts=6)
    return out


def test_shipped_models_are_small_and_load() -> None:
    files = [path for path in demo.SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    for name in ("student", "compatible-teacher", "incompatible-teacher"):
        model = load_model(demo.SHIPPED / name)
        assert model.dtype == torch.float32
        assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 800_000


def test_shipped_teachers_know_more_than_the_student() -> None:
    student, *teachers = (
        accuracy(load_model(demo.SHIPPED / name), 256, seed=0)
        for name in ("student", "compatible-teacher", "incompatible-teacher")
    )
    assert all(teacher > 2 * student for teacher in teachers)


def test_a_glob_over_the_runs_matches_the_runs_alone(runs: Path) -> None:
    assert sorted(path.name for path in runs.glob("[!.]*")) == ["compatible", "incompatible"]


def test_manifest_names_what_is_there(runs: Path) -> None:
    for name in demo.DEMO_RUNS:
        manifest = yaml.safe_load((runs / name / "opd-probe.yaml").read_text())
        assert set(manifest) == {"teacher", "student", "prompts", "max_new_tokens", "num_rollouts"}
        for key in ("teacher", "student"):
            AutoModelForCausalLM.from_pretrained(runs / name / manifest[key])
        assert (runs / name / manifest["prompts"]).is_file()


def test_prompts_are_encoded_to_the_ids_that_the_student_trained_on(runs: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(runs / "compatible" / "checkpoint-3")
    rows = [json.loads(line) for line in (runs / "compatible" / "prompts.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 6
    for row in rows:
        assert tokenizer(row["prompt"])["input_ids"] == encode(row["prompt"])
        assert grade(f"finally answer {row['answer']}", row["answer"])


def test_both_runs_distil_one_student_and_log_it(runs: Path) -> None:
    logs = {}
    for name in demo.DEMO_RUNS:
        state = json.loads((runs / name / "checkpoint-3" / "trainer_state.json").read_text())
        assert state["global_step"] == 3
        logs[name] = state["log_history"]
        assert len(logs[name]) == 3
    # Before the first update both runs sample the same responses from the same student.
    assert logs["compatible"][0]["reward"] == logs["incompatible"][0]["reward"]
    assert logs["compatible"][0]["loss"] != logs["incompatible"][0]["loss"]


def test_importing_the_lab_loads_no_torch() -> None:
    code = "import sys, opd_probe.lab; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
