"""Checkpoints of one run that make other prompts of the same messages, as trainers leave them that write a template of
their own into every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import normalizers

from opd_probe.models.splitting import differing_parts
from opd_probe.rollouts.files import read_rollouts
from tests.cli.workspace import Caller, write_lines
from tests.tiny import CHAT_TEMPLATE, QUESTION_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORDS = ["<|user|>", "<|assistant|>", "Q:", "A:", "say", "now", *map(str, range(40))]


def made(place: Path, step: int, template: str) -> Path:
    tokenizer = tiny_tokenizer(words=WORDS, chat_template=template)
    return save_checkpoint(place, tiny_model(len(WORDS) + 3, seed=step, layers=1), tokenizer)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints with a template of the trainer's, and the base with its own as step 0."""
    for step in (5, 10):
        made(tmp_path / "run" / f"checkpoint-{step}", step, QUESTION_TEMPLATE + "{{ ' now' }}")
    made(tmp_path / "base", 1, CHAT_TEMPLATE)
    (tmp_path / "run" / "opd-probe.yaml").write_text("student: ../base\n")
    return tmp_path / "run"


def lengths(out: Path, step: int) -> set[int]:
    return {len(rollout.prompt_ids) for rollout in read_rollouts(out / "rollouts" / "run" / f"step-{step}.parquet")}


def test_a_run_whose_templates_differ_is_warned_of_and_may_have_one(call: Caller, run: Path, tmp_path: Path) -> None:
    prompts = write_lines(
        tmp_path / "prompts.jsonl", [{"messages": [{"role": "user", "content": f"say {n}"}]} for n in range(3)]
    )
    words = ["--prompts", prompts, "--teacher", tmp_path / "base", "--max-new-tokens", "3", "--num-rollouts", "1"]
    said = "run run: step 5, 10 make other ids of the same messages than the first checkpoint (chat template)"
    for command in ("overlap", "align"):
        done = call(command, "--ckpts", run, *words, "--out", tmp_path / "own")
        assert done.code == 0, done.err
        assert said in done.err
        assert "--template PATH" in done.err
    assert [lengths(tmp_path / "own", step) for step in (0, 5, 10)] == [{4}, {5}, {5}]
    again = call("overlap", "--traces", tmp_path / "own")
    assert "run run: 3 of 3 prompts differ in length between its traces" in again.err
    (tmp_path / "one.jinja").write_text(QUESTION_TEMPLATE)
    for name, template, expected in (("file", tmp_path / "one.jinja", 4), ("model", run / "checkpoint-5", 5)):
        out = tmp_path / name
        done = call("overlap", "--ckpts", run, *words, "--template", template, "--out", out, "--format", "json")
        assert (done.code, "make other ids" in done.err) == (0, False), done.err
        assert [lengths(out, step) for step in (0, 5, 10)] == [{expected}] * 3
        assert len(done.rows) == 3
        assert "differ in length" not in call("overlap", "--traces", out).err
    wrong = call("overlap", "--ckpts", run, *words, "--template", tmp_path / "none", "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert "none" in wrong.errors[-1]
    assert not (tmp_path / "wrong").exists()


def test_prompts_that_no_template_touches_are_not_warned_of(call: Caller, run: Path, tmp_path: Path) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "say 1"}])
    words = ["--prompts", prompts, "--teacher", tmp_path / "base", "--max-new-tokens", "2", "--num-rollouts", "1"]
    assert "make other ids" not in call("overlap", "--ckpts", run, *words, "--out", tmp_path / "out").err


def test_the_list_of_checkpoints_says_it(call: Caller, run: Path) -> None:
    made(run / "checkpoint-15", 15, CHAT_TEMPLATE)
    done = call("ckpts", run, "--format", "json")
    assert "run run: step 15 differ from its first checkpoint in their chat template" in done.err
    assert [row["differs"] for row in done.rows] == [None, None, "chat template"]
    made(run / "checkpoint-15", 15, QUESTION_TEMPLATE + "{{ ' now' }}")
    assert call("ckpts", run).err == ""


def test_what_differs_of_two_tokenizers(tmp_path: Path) -> None:
    for name in ("one", "other", "lower"):
        tiny_tokenizer(words=WORDS, chat_template=CHAT_TEMPLATE).save_pretrained(tmp_path / name)
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content, indent=1))  # other bytes, the same tokenizer
    assert differing_parts(tmp_path / "one", tmp_path / "other") == []
    tokenizer = tiny_tokenizer(words=WORDS, chat_template=QUESTION_TEMPLATE)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path / "lower")
    assert differing_parts(tmp_path / "one", tmp_path / "lower") == ["chat template", "normalizer"]
    (tmp_path / "none").mkdir()
    assert differing_parts(tmp_path / "one", tmp_path / "none") == []
