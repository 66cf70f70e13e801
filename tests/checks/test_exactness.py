"""Two right paths of one model: a mixture of experts in bfloat16 differs by much, a dense model in float32 does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DbrxConfig,
    DeepseekV3Config,
    JambaConfig,
    Llama4Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import opd_probe
from opd_probe.checks import Finding
from opd_probe.models.experts import experts_of
from opd_probe.models.loading import load_model
from opd_probe.types import Rollout
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, serving
from tests.tiny import tiny_model

WIDTH = 64


@pytest.fixture(scope="module")
def sparse() -> Qwen3MoeForCausalLM:
    """A mixture of 16 experts in bfloat16, with opinions."""
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=WIDTH, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=16, num_experts_per_tok=2,
        max_position_embeddings=256,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
    return model.to(torch.bfloat16).eval()


def dense() -> torch.nn.Module:
    return tiny_model(WIDTH, hidden=64, layers=4, max_positions=256)


def responses(lengths: Sequence[int], *, same_prompt: bool = False, seed: int = 0) -> list[Rollout]:
    """Rollouts of random ids; a token is one of 61."""
    generator = np.random.default_rng(seed)
    shared = generator.integers(3, WIDTH, 12).tolist()
    made = []
    for number, length in enumerate(lengths):
        prompt = shared if same_prompt else generator.integers(3, WIDTH, 12).tolist()
        made.append(Rollout(f"r{number}", prompt, generator.integers(3, WIDTH, length).tolist()))
    return made


def line(student: object, teacher: object, rollouts: Sequence[Rollout], **more: object) -> Finding:
    found = opd_probe.doctor(student, teacher, rollouts, k=8, **more)  # type: ignore[arg-type]
    (finding,) = (one for one in found if one.check == "exactness")
    return finding


def truly(model: Any, rollout: Rollout) -> np.ndarray:
    """The sampled log-probabilities of one rollout alone, from the layers' own forward; logits in float64."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids][:-1]])
    with torch.inference_mode():
        hidden = model.model(ids).last_hidden_state[0, len(rollout.prompt_ids) - 1 :]
        logits = hidden.double() @ model.lm_head.weight.double().T
    return logits.log_softmax(-1)[range(len(rollout.response_ids)), list(rollout.response_ids)].numpy()


@pytest.mark.parametrize("same_prompt", [False, True])
def test_a_mixture_of_experts_beside_a_dense_model(sparse: Qwen3MoeForCausalLM, same_prompt: bool) -> None:
    rollouts = responses([24, 22, 21, 20], same_prompt=same_prompt)
    found = line(sparse, dense(), rollouts)
    assert found.status == "warn"
    assert found.values["student_share"] > 0.01
    assert found.values["student_largest"] >= found.values["student_median"] > 0
    assert found.values["student_n_tokens"] == found.values["teacher_n_tokens"] == 87
    assert found.values["student_n_different"] == round(found.values["student_share"] * 87)
    assert (found.values["student_experts"], found.values["student_dtype"]) == (16, "bfloat16")
    assert (found.values["teacher_experts"], found.values["teacher_dtype"]) == (0, "float32")
    assert (found.values["teacher_share"], found.values["tolerance"]) == (0.0, 1e-4)
    assert 0 < found.values["teacher_largest"] < 1e-4
    assert "student (16 experts, bfloat16)" in found.figure
    assert "--dtype float32" in found.advice


def test_the_share_is_of_what_a_replay_says(sparse: Qwen3MoeForCausalLM) -> None:
    """Where a prompt is shared, against the model's own forward of each rollout."""
    rollouts = responses([24, 22, 21, 20], same_prompt=True)
    replayed = opd_probe.replay(sparse, sparse, rollouts, k=1).column("student_logprob")
    alone = np.concatenate([truly(sparse, rollout) for rollout in rollouts])
    found = line(sparse, sparse, rollouts)
    for side in ("student", "teacher"):
        assert found.values[f"{side}_largest"] == pytest.approx(np.abs(replayed - alone).max(), abs=2e-6)
        assert found.values[f"{side}_median"] == pytest.approx(np.median(np.abs(replayed - alone)), abs=2e-6)


def test_the_same_mixture_in_float32_is_exact(sparse: Qwen3MoeForCausalLM) -> None:
    wide = Qwen3MoeForCausalLM(sparse.config).float().eval()
    wide.load_state_dict(sparse.state_dict())
    found = line(dense(), wide, responses([20, 29]))
    assert (found.status, found.values["teacher_share"], found.values["teacher_experts"]) == ("ok", 0.0, 16)
    assert found.values["teacher_dtype"] == "float32"
    assert found.advice == ""


def test_every_rollout_has_two_paths(sparse: Qwen3MoeForCausalLM) -> None:
    """One that is much longer than the others, of which some tokens are no states, and for a teacher that reads another
    prompt."""
    long, *others = responses([120, 20, 20])
    masked = [replace(one, response_mask=[0, 0] + [1] * 18) for one in others]
    prompts = [list(one.prompt_ids)[3:] for one in (long, *others)]
    found = line(sparse, dense(), [long, *masked], teacher_prompts=prompts)
    assert found.values["student_n_tokens"] == found.values["teacher_n_tokens"] == 156
    assert line(sparse, dense(), [long]).values["student_n_tokens"] == 120


def test_nothing_to_compare(sparse: Qwen3MoeForCausalLM) -> None:
    """Of a prompt of one token nothing goes apart, and one rollout has no other beside it."""
    (one,) = responses([20])
    short = replace(one, prompt_ids=list(one.prompt_ids)[:1])
    found = line(sparse, dense(), [short])
    assert (found.status, found.values) == ("skip", {})
    assert "student: n/a: no rollout has a second exact path; teacher: n/a" in found.figure
    assert line(sparse, dense(), [short, replace(short, id="again")]).values["student_n_tokens"] == 40


def test_a_model_that_is_exact_on_one_path_alone(sparse: Qwen3MoeForCausalLM) -> None:
    """What a batch, or a cache, changes in a model is no second right path."""
    student = load_model(tiny_model(WIDTH, max_positions=256, seed=3))
    student.paths = replace(student.paths, batching="alone", verdicts={"shared": None})
    found = line(student, sparse, responses([20, 20]))
    assert (found.values["student_n_tokens"], found.values["teacher_n_tokens"]) == (0, 40)
    assert np.isnan(found.values["student_share"])
    assert "student (float32) n/a" in found.figure
    student.paths = replace(student.paths, batching="of one length")
    assert line(student, sparse, responses([20, 20, 19])).values["student_n_tokens"] == 40


def test_a_served_teacher_is_not_compared() -> None:
    with serving(Exchanges.read("vllm_teacher.jsonl")) as server:
        found = line(cases.student(), server.url, cases.rollouts())
    assert (found.status, found.values["student_share"], found.values["teacher_n_tokens"]) == ("ok", 0.0, 0)
    assert np.isnan(found.values["teacher_share"])
    assert "teacher n/a: behind HTTP" in found.figure


def test_experts_are_counted_wherever_a_configuration_states_them() -> None:
    assert experts_of(Qwen3MoeConfig(num_experts=128)) == 128
    assert experts_of(DbrxConfig(ffn_config={"moe_num_experts": 4})) == 4
    assert experts_of(DeepseekV3Config(n_routed_experts=32)) == 32
    assert experts_of(Llama4Config(text_config={"num_local_experts": 16})) == 16
    assert experts_of(JambaConfig(num_experts=1)) == experts_of(tiny_model().config) == 0
