"""``--sequential``, and several teachers: one pass of the student, one model at a time, the same numbers."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Model

from opd_probe.jobs import memory
from opd_probe.models.bodies import Body
from opd_probe.models.loading import LoadedModel
from opd_probe.models.trials import Trial
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

REPLAY = ("--rollouts", "rollouts.jsonl", "--batch-tokens", "20", "--format", "json")
SAMPLE = ("--prompts", "prompts.jsonl", "--max-new-tokens", "6", "--num-rollouts", "2", "--format", "json")
TWO = ("--ckpts", "runs/good/checkpoint-5", "runs/good/checkpoint-20", "--teacher", "teacher", "--teacher", "base")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Tokens that each model's backbone has read, by a number that tells the weights apart.

    What a fresh model is tried on is left out.
    """
    read: Counter[float] = Counter()
    original = Qwen2Model.forward
    trials: list[str] = []

    for name, trial in (("paths", Trial.paths), ("verdict", Trial.verdict)):

        def tried(self: Trial, *args: Any, trial: Any = trial) -> Any:
            trials.append(trial.__name__)
            try:
                return trial(self, *args)
            finally:
                trials.pop()

        monkeypatch.setattr(Trial, name, tried)

    def forward(self: Qwen2Model, input_ids: torch.Tensor, **given: Any) -> Any:
        if not trials:
            read[float(self.embed_tokens.weight[3].sum())] += input_ids.numel()
        return original(self, input_ids=input_ids, **given)

    monkeypatch.setattr(Qwen2Model, "forward", forward)
    return read


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were in memory at each forward pass of one."""
    seen: list[int] = []
    loaded: list[weakref.ref[LoadedModel]] = []
    made = LoadedModel.__init__

    def making(self: LoadedModel, *args: Any, **given: Any) -> None:
        made(self, *args, **given)
        loaded.append(weakref.ref(self))

    monkeypatch.setattr(LoadedModel, "__init__", making)
    original = Body.__call__

    def counting(self: Body, *args: Any, **given: Any) -> Any:
        seen.append(sum(one() is not None for one in loaded))
        return original(self, *args, **given)

    monkeypatch.setattr(Body, "__call__", counting)
    return seen


def same_numbers(one: Path, other: Path) -> None:
    files = [name for name in files_below(one) if name.startswith("traces") and name.endswith(".parquet")]
    assert len(files) > 1
    assert files_below(one) == files_below(other)
    for name in files:
        left, right = read_trace(one / name), read_trace(other / name)
        for column in left.columns:
            np.testing.assert_allclose(left.column(column), right.column(column), rtol=1e-6, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("source", [REPLAY, SAMPLE], ids=["rollouts", "prompts"])
def test_one_model_at_a_time_gives_the_same_numbers(
    call: Caller, tmp_path: Path, together: list[int], source: tuple[str, ...]
) -> None:
    plain = call("overlap", *TWO, *source, "--no-sequential", "--out", tmp_path / "plain")
    assert max(together) == 3
    together.clear()
    done = call("overlap", *TWO, *source, "--sequential", "--out", tmp_path / "sequential")
    assert done.code == 0, done.err
    assert max(together) == 1
    for row, expected in zip(done.rows, plain.rows, strict=True):
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value)
    same_numbers(tmp_path / "plain", tmp_path / "sequential")


@pytest.mark.parametrize("how", ["--sequential", "--no-sequential"])
def test_the_student_runs_once_for_all_teachers(call: Caller, tmp_path: Path, runs: Counter[float], how: str) -> None:
    words = ("overlap", "--ckpts", "runs/good/checkpoint-5", *REPLAY, how, "--out", tmp_path)
    assert call(*words, "--teacher", "teacher").code == 0
    once = dict(runs)
    assert len(once) == 2
    assert len(set(once.values())) == 1  # the student and the teacher read the same tokens, once each
    (tokens,) = set(once.values())
    runs.clear()
    assert call(*words, "--teacher", "teacher", "--teacher", "base", "--teacher", "runs/bad/checkpoint-5").code == 0
    assert sorted(runs.values()) == [tokens] * 3  # the first teacher's trace was there already
    assert len(set(runs) & set(once)) == 1  # the student
    runs.clear()
    fresh = (*words[:-1], tmp_path / "fresh")
    assert call(*fresh, "--teacher", "teacher", "--teacher", "base", "--teacher", "runs/bad/checkpoint-5").code == 0
    assert sorted(runs.values()) == [tokens] * 4


def test_a_resumed_command_runs_no_finished_teacher(
    call: Caller, tmp_path: Path, runs: Counter[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd_probe.cli.progress import StderrProgress

    words = ["overlap", *TWO[:2], *TWO[3:], *REPLAY, "--sequential", "--out", tmp_path]
    tasks: list[str] = []

    def interrupt(_: StderrProgress, task: str) -> None:
        tasks.append(task)
        if sum(task.startswith("replay") for task in tasks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StderrProgress, "begin", interrupt)
        assert call(*words).code == 130
    (kept,) = files_below(tmp_path)
    assert kept == "traces/good/base/step-5.parquet"
    before = (tmp_path / kept).stat().st_mtime_ns
    runs.clear()
    assert call(*words).code == 0
    assert len(runs) == 2
    assert len(set(runs.values())) == 1
    assert (tmp_path / kept).stat().st_mtime_ns == before


def test_it_is_chosen_when_models_do_not_fit_together(
    call: Caller, tmp_path: Path, together: list[int], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (workspace / "teacher" / "model.safetensors").stat().st_size
    monkeypatch.setattr(memory, "free_memory", lambda *_: int(2.5 * size / memory.HEADROOM))
    assert call("overlap", *TWO, *REPLAY, "--out", tmp_path / "three").code == 0  # two fit, three do not
    assert max(together) == 1
    together.clear()
    assert call("overlap", *TWO[:5], *REPLAY, "--out", tmp_path / "two").code == 0
    assert max(together) == 2
    together.clear()
    assert call("overlap", *TWO[:5], *REPLAY, "--sequential", "--out", tmp_path / "asked").code == 0
    assert max(together) == 1


def test_a_manifest_may_ask_for_it(call: Caller, tmp_path: Path, together: list[int], workspace: Path) -> None:
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", tmp_path / "run" / "checkpoint-5")
    (tmp_path / "run" / "opd-probe.yaml").write_text("sequential: true\n")
    words = ("overlap", "--ckpts", tmp_path / "run", "--teacher", "teacher", *REPLAY)
    assert call(*words, "--out", tmp_path / "one").code == 0
    assert max(together) == 1
    together.clear()
    assert call(*words, "--no-sequential", "--out", tmp_path / "two").code == 0
    assert max(together) == 2


@pytest.mark.parametrize("how", ["--sequential", "--no-sequential"])
def test_a_teacher_that_does_not_fit_is_refused_before_anything_runs(
    call: Caller, tmp_path: Path, runs: Counter[float], how: str
) -> None:
    tokenizer = tiny_tokenizer(words=["zero", *(str(number) for number in range(1, 61))])
    save_checkpoint(tmp_path / "other", tiny_model(seed=3), tokenizer)
    for source in (REPLAY, SAMPLE):
        done = call("overlap", *TWO, "--teacher", tmp_path / "other", *source, how, "--out", tmp_path / "out")
        assert done.code == 2
        assert "differ: id 3" in done.errors[0]
        assert not (tmp_path / "out").exists()
    assert not runs


def test_sampling_alone_loads_no_teacher(call: Caller, tmp_path: Path, together: list[int]) -> None:
    words = ("rollout", "--ckpts", "runs/good/checkpoint-5", *SAMPLE)
    assert call(*words, "--teacher", "teacher", "--out", tmp_path / "r.jsonl").code == 0
    assert max(together) == 1
    assert len(read_rollouts(tmp_path / "r.jsonl")) == 8
