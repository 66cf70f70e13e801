"""A real vLLM server as teacher and as sampler agrees with the models themselves: ``make contract``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import opd_probe
from opd_probe.errors import OpdProbeWarning, ServerError
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.outline import read_outline
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import connect
from opd_probe.models.served.sampling import sample_from_server, served_checkpoint
from opd_probe.trace import Trace
from opd_probe.types import Prompt, Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make contract installs it")

WIDTH, CONTEXT, DEEPEST = 300, 128, 40
KEY = "a-key-of-the-contract"
EOS = (1, 7)
UNKNOWN = ("teacher_entropy", "reverse_kl", "forward_kl", "teacher_mass_outside")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    tokenizer = tiny_tokenizer(WIDTH)
    student = tiny_model(WIDTH, hidden=64, seed=1, tied=False, spread=0.3)
    student.generation_config.eos_token_id = list(EOS)
    save_checkpoint(root / "student", student, tokenizer, step=20)
    # Asks for what our sampling never does, and vLLM takes it up unless a request says otherwise.
    config = json.loads((root / "student" / "generation_config.json").read_text())
    config.update(do_sample=True, top_k=2, top_p=0.5, temperature=0.1, repetition_penalty=1.5)
    (root / "student" / "generation_config.json").write_text(json.dumps(config))
    save_checkpoint(root / "teacher", tiny_model(WIDTH, hidden=64, seed=2, tied=False), tokenizer)
    save_checkpoint(root / "other", tiny_model(WIDTH, hidden=64, seed=9, tied=False), tokenizer)
    save_adapter(root / "adapter")
    return root


def save_adapter(path: Path, layers: int = 2, hidden: int = 64, rank: int = 8) -> None:
    """A LoRA adapter of the teacher's queries, as peft writes it."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"lora_A": (rank, hidden), "lora_B": (hidden, rank)}
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{name}.weight": torch.randn(shape, generator=generator)
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    path.mkdir()
    save_file(weights, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
              "target_modules": ["q_proj"], "base_model_name_or_path": None}  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))


def replace_weights(url: str, path: Path) -> None:
    """Put other weights into a running server, as trainers do."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
    answer = httpx.post(f"{url}/collective_rpc", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
    assert answer.status_code == 200, answer.text


def start(model: Path, log: Path, *more: object) -> Iterator[str]:
    """A server with one model, in development mode; its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        "--model",
        model,
        "--served-model-name",
        model.name,
        "--port",
        port,
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    words += ["--max-model-len", CONTEXT, "--max-logprobs", DEEPEST, "--api-key", KEY, *more]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, words)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_NO_USAGE_STATS": "1",
                   "VLLM_SERVER_DEV_MODE": "1"}  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(900):
            assert process.poll() is None, log.read_text()[-2000:]
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_PROBE_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def teacher(home: Path) -> Iterator[str]:
    adapter = ("--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"adapter={home / 'adapter'}")
    yield from start(home / "teacher", home / "teacher.log", *adapter)


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """As long as the server takes them, ids up to the last, a masked part, one token alone."""
    generator = np.random.default_rng(3)
    shapes = [(4, 20), (1, 1), (9, CONTEXT - 1 - 9), (30, 40), (4, 33), (2, 17)]
    found = []
    for index, (prompt, response) in enumerate(shapes):
        ids = generator.integers(0, WIDTH, prompt + response).tolist()
        mask = [int(place % 5 > 0) for place in range(response)] if index == 3 else None
        found.append(Rollout(f"r{index}", ids[:prompt], ids[prompt:], response_mask=mask))
    return found


@pytest.fixture(scope="module")
def traces(home: Path, teacher: str, rollouts: list[Rollout]) -> tuple[Trace, Trace]:
    """Of the served teacher, and of its weights."""
    with pytest.warns(OpdProbeWarning, match=f"tells the top {DEEPEST} at most, asked for are 64"):
        served = opd_probe.replay(home / "student", f"{teacher}#teacher", rollouts, k=64)
    return served, opd_probe.replay(home / "student", home / "teacher", rollouts, k=DEEPEST)


def test_a_served_teacher_agrees_with_its_weights(traces: tuple[Trace, Trace]) -> None:
    served, local = traces
    assert served.K == local.K == DEEPEST
    assert served.n_states == local.n_states > 200
    ours, theirs = (np.sort(trace.column("teacher_top_ids"), axis=1) for trace in traces)
    equal = (ours == theirs).all(1)
    print(f"\ntop-{DEEPEST} sets equal at {equal.sum()} of {len(equal)} states")
    for k in (1, 4, 16, DEEPEST):
        sets = [np.sort(trace.column("teacher_top_ids")[:, :k], axis=1) for trace in traces]
        np.testing.assert_array_equal(*sets, err_msg=f"top-{k} sets")
    for name in ("teacher_top_logprobs", "teacher_logprob"):
        difference = np.abs(served.column(name) - local.column(name))
        print(f"{name}: largest difference {difference.max():.2e}")
        assert difference.max() < 1e-3, name
    known = ~np.isnan(served.column("teacher_logprobs_at_student_top"))
    print(f"teacher_logprobs_at_student_top: known at {known.mean():.1%}")
    difference = (served.column("teacher_logprobs_at_student_top") - local.column("teacher_logprobs_at_student_top"))[
        known
    ]
    assert np.abs(difference).max() < 1e-3
    for name in served.columns:
        if name in UNKNOWN:
            assert np.isnan(served.column(name)).all(), name
        elif name.startswith("student"):
            np.testing.assert_allclose(served.column(name), local.column(name), atol=3e-6, err_msg=name)
    assert not served.provenance["vocabulary"]["assumed"]  # the weights' own tokenizer is on this machine


def test_its_metrics_are_those_of_its_weights(traces: tuple[Trace, Trace]) -> None:
    served, local = (opd_probe.state_metrics(trace, 16) for trace in traces)
    for name in ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass", "sampled_reward",
                 "teacher_topk_mass", "topk_reverse_kl_teacher", "topk_reverse_kl_overlap"):  # fmt: skip
        np.testing.assert_allclose(served[name], local[name], atol=1e-3, err_msg=name)


def test_an_adapter_has_the_context_and_the_tokenizer_of_its_parent(home: Path, teacher: str) -> None:
    served = connect(parse_endpoint(f"{teacher}#adapter"))
    assert (served.entry["max_model_len"], served.context) == (None, CONTEXT)
    rows = [{"id": "r", "prompt_ids": [5, 9, 40], "response_ids": [7, 33, 12]}]
    trace = opd_probe.replay(home / "student", f"{teacher}#adapter", rows, k=8)
    assert not trace.provenance["vocabulary"]["assumed"]
    base = opd_probe.replay(home / "student", f"{teacher}#teacher", rows, k=8)
    assert np.abs(trace.column("teacher_logprob") - base.column("teacher_logprob")).max() > 1e-2
    longer = [{"id": "long", "prompt_ids": [5] * 40, "response_ids": [8] * (CONTEXT - 40)}]
    with pytest.raises(opd_probe.OpdProbeError, match=f"adapter at .* scores {CONTEXT - 1} at most"):
        opd_probe.replay(home / "student", f"{teacher}#adapter", longer, k=8)


def test_weights_that_are_replaced_in_place(home: Path, teacher: str, tmp_path: Path) -> None:
    rows = [{"id": "r", "prompt_ids": [5, 9, 40], "response_ids": [7, 33, 12]}]
    url, out = f"{teacher}#teacher", tmp_path / "trace.parquet"
    before = opd_probe.replay(home / "student", url, rows, k=8, out=out)
    assert before.provenance["teacher"]["weight_version"] == "default"
    replace_weights(teacher, home / "other")
    try:
        with pytest.warns(OpdProbeWarning, match="teacher's answers changed since it was made"):  # the version did not
            after = opd_probe.replay(home / "student", url, rows, k=8, out=out)
        expected = opd_probe.replay(home / "student", home / "other", rows, k=8)
        np.testing.assert_allclose(after.column("teacher_logprob"), expected.column("teacher_logprob"), atol=1e-3)
    finally:
        replace_weights(teacher, home / "teacher")


def test_a_key_that_is_wrong(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_PROBE_API_KEY", "wrong-key")
    with pytest.raises(ServerError, match=r"answers 401 .*set OPD_PROBE_API_KEY") as caught:
        opd_probe.replay("no/such", teacher, [{"prompt_ids": [3], "response_ids": [4]}])
    assert "wrong-key" not in str(caught.value)


def test_a_sampling_server_draws_from_the_checkpoint(home: Path) -> None:
    prompts = [Prompt(f"p{n}", ids=tuple(range(3, 6 + 4 * n))) for n in range(4)]
    allowed = np.setdiff1d(np.arange(WIDTH), [2, 5, WIDTH - 1])
    checkpoint = resolve_checkpoint(home / "student")
    how = {"num_rollouts": 8, "max_new_tokens": 24, "seed": 3, "step": 20, "allowed_ids": allowed}
    for url in start(home / "student", home / "student.log", "--block-size", 32, "--enable-prefix-caching"):
        served = served_checkpoint(parse_endpoint(url), checkpoint, alone=False)  # found by where it was loaded from
        first = sample_from_server(read_outline(checkpoint), served, prompts, **how)
        again = sample_from_server(read_outline(checkpoint), served, prompts[::-1], **how)
        cached = [Prompt("long", ids=tuple(range(3, 83)))]
        sample_from_server(read_outline(checkpoint), served, cached, **how)
        replace_weights(url, home / "other")
        with pytest.raises(ServerError, match=r"its own scores of them differ by .* reset its prefix cache"):
            sample_from_server(read_outline(checkpoint), served, cached, **{**how, "seed": 4})
    assert {r.id: r.response_ids for r in again} == {r.id: r.response_ids for r in first}
    assert len({rollout.response_ids for rollout in first}) > 24
    drawn = {token for rollout in first for token in rollout.response_ids}
    assert drawn <= set(allowed.tolist())
    assert len(drawn) > WIDTH / 3  # no top-k, no top-p
    for rollout in first:
        assert not set(EOS) & set(rollout.response_ids[:-1])
        assert rollout.finish_reason == ("stop" if rollout.response_ids[-1] in EOS else "length")
    trace = opd_probe.replay(home / "student", home / "student", first, k=4)
    difference = np.abs(trace.column("sampler_logprob") - trace.column("student_logprob"))
    print(f"\nsampler's log-probabilities: largest difference {difference.max():.2e} over {trace.n_states} states")
    # The server normalises over all ids, before the three are left out.
    assert difference.max() < 1e-3
