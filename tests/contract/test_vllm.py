"""What we take from a real vLLM, and that it keeps to our rules of sampling: ``make contract``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import load_model
from opd_probe.models.outline import read_outline
from opd_probe.models.samplers import sampler_version
from opd_probe.models.vllm_sampling import sample_with_vllm
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import read_trace
from opd_probe.types import Prompt, Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make contract installs it")

PROMPTS = [Prompt(f"p{n}", ids=tuple(range(3, 5 + 3 * n))) for n in range(4)]
EOS = {1, 7}
SHARED = 60
"""Ids of the teacher's tokenizer; the student's model and tokenizer have 64."""

NEW_TOKENS = 24
SAMPLING = {"num_rollouts": 8, "max_new_tokens": NEW_TOKENS, "seed": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contract")
    student = tiny_model(64, hidden=64, seed=1, tied=False, spread=0.3)  # undecided: many likely tokens
    student.generation_config.eos_token_id = sorted(EOS)
    save_checkpoint(root / "student", student, tiny_tokenizer(64), step=20)
    # Asks for what our sampling never does.
    config = json.loads((root / "student" / "generation_config.json").read_text())
    config.update(do_sample=True, top_k=2, top_p=0.5, temperature=0.1, repetition_penalty=1.5)
    (root / "student" / "generation_config.json").write_text(json.dumps(config))
    save_checkpoint(root / "teacher", tiny_model(SHARED, hidden=64, seed=2), tiny_tokenizer(SHARED))
    lines = [json.dumps({"id": p.id, "prompt": " ".join(str(token - 3) for token in p.ids or ())}) for p in PROMPTS]
    (root / "prompts.jsonl").write_text("\n".join(lines))
    return root


def overlap(home: Path, sampler: str) -> subprocess.CompletedProcess[str]:
    words = [
        "overlap",
        "--ckpts",
        "student",
        "--teacher",
        "teacher",
        "--prompts",
        "prompts.jsonl",
        "--sampler",
        sampler,
    ]
    words += [word for name, value in SAMPLING.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.run(
        [Path(sys.executable).with_name("opd-probe"), *words, "--device", "cpu", "--out", "out", "--format", "json"],
        cwd=home,
        # Without what limits vLLM's memory otherwise: it has to do with a machine that is in use.
        env={**{k: v for k, v in os.environ.items() if k != "VLLM_CPU_KVCACHE_SPACE"}, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(home: Path) -> dict[str, Any]:
    """The printed row of one command that samples with vLLM and replays."""
    done = overlap(home, "vllm")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)  # and nothing but rows on stdout
    return row


@pytest.fixture(scope="module")
def stored(home: Path, measured: dict[str, Any]) -> list[Rollout]:
    (file,) = (home / "out" / "rollouts").rglob("*.parquet")
    rollouts = read_rollouts(file)
    assert measured["n_rollouts"] == len(rollouts) == 32
    return rollouts


def test_its_log_probabilities_are_those_of_a_replay(home: Path, stored: list[Rollout]) -> None:
    (file,) = (home / "out" / "traces").rglob("*.parquet")
    trace = read_trace(file)
    assert trace.n_states == sum(len(rollout.response_ids) for rollout in stored)
    sampled, replayed = trace.column("sampler_logprob"), trace.column("student_logprob")
    np.testing.assert_allclose(sampled, replayed, atol=1e-3, rtol=0)
    assert trace.column("student_mass_outside").mean() > 0.01  # which both leave out
    assert sampled.std() > 0.5  # tokens that were likely, and tokens that were not


def test_only_shared_ids_are_drawn_and_eos_ends_a_response(stored: list[Rollout]) -> None:
    assert len({token for rollout in stored for token in rollout.response_ids}) > SHARED / 2
    for rollout in stored:
        assert max(rollout.response_ids) < SHARED
        assert not EOS & set(rollout.response_ids[:-1])
        stopped = rollout.response_ids[-1] in EOS
        assert rollout.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(rollout.response_ids) == NEW_TOKENS
    assert {rollout.response_ids[-1] for rollout in stored} >= EOS
    assert {rollout.finish_reason for rollout in stored} == {"stop", "length"}


def test_rollouts_say_who_and_keep_the_prompts(stored: list[Rollout]) -> None:
    assert {rollout.sampler for rollout in stored} == {sampler_version("vllm")}
    expected = [(f"{prompt.id}/{sample}", prompt.ids) for prompt in PROMPTS for sample in range(8)]
    assert [(rollout.id, rollout.prompt_ids) for rollout in stored] == expected
    assert {rollout.step for rollout in stored} == {20}


def test_the_same_seeds_make_the_same_draws_and_the_engine_is_gone(home: Path, stored: list[Rollout]) -> None:
    import psutil

    checkpoint = resolve_checkpoint(home / "student")
    done: list[tuple[int, int]] = []
    again = sample_with_vllm(
        read_outline(checkpoint),
        checkpoint,
        PROMPTS[::-1],  # in another order
        allowed_ids=np.arange(SHARED),
        step=20,
        progress=lambda *counts: done.append(counts),
        **SAMPLING,
    )
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert [words for words in left if "resource_tracker" not in " ".join(words)] == []  # that is Python's own
    assert (done[0], done[-1]) == ((0, 32), (32, 32))
    expected = {rollout.id: rollout.response_ids for rollout in stored}
    assert {rollout.id: rollout.response_ids for rollout in again} == expected
    assert len(set(expected.values())) > 24  # different seeds make different draws


def test_frequencies_at_another_temperature_on_few_ids(home: Path) -> None:
    checkpoint, allowed, count = resolve_checkpoint(home / "student"), np.array([1, 4, 5, 20, 33, 63]), 1000
    rollouts = sample_with_vllm(
        read_outline(checkpoint),
        checkpoint,
        PROMPTS[:1],
        allowed_ids=allowed,
        num_rollouts=count,
        max_new_tokens=2,
        temperature=0.7,
    )
    model = load_model(home / "student").model
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0].ids])).logits[0, -1, allowed].double()
    logprobs = torch.log_softmax(logits / 0.7, -1).numpy()
    assert (np.exp(logprobs) > 0.05).sum() > 2
    first = Counter(rollout.response_ids[0] for rollout in rollouts)
    assert set(first) <= set(allowed.tolist())
    for token, logprob in zip(allowed.tolist(), logprobs, strict=True):
        p = float(np.exp(logprob))
        assert abs(first[token] / count - p) < 4 * np.sqrt(p * (1 - p) / count) + 1 / count
        told = [rollout.logprobs[0] for rollout in rollouts if rollout.logprobs and rollout.response_ids[0] == token]
        np.testing.assert_allclose(told, logprob, atol=1e-3)


def test_stored_samples_are_used_again_by_the_same_sampler_alone(home: Path, stored: list[Rollout]) -> None:
    (file,) = (home / "out" / "rollouts").rglob("*.parquet")
    before = file.read_bytes()
    assert read_rollouts(file) == stored
    assert overlap(home, "vllm").returncode == 0
    assert file.read_bytes() == before
    done = overlap(home, "transformers")
    assert done.returncode == 0, done.stderr
    assert f"made by {sampler_version('vllm')}, asked for is transformers; sampled anew" in done.stderr
    assert {rollout.sampler for rollout in read_rollouts(file)} == {sampler_version("transformers")}
