"""Which ways of calling a model are exact: tried on the model, once for each object."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    CohereConfig,
    Lfm2Config,
    Molmo2Config,
    Qwen2Config,
    Qwen3MoeConfig,
    RobertaConfig,
)

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.models.bodies import Body, own_logits
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import load_model
from opd_probe.models.outline import read_outline
from opd_probe.models.placeholders import placeholder_ids
from opd_probe.models.readout import measured_layer, stated_layer
from opd_probe.models.trial_ids import special_ids, thresholds
from opd_probe.types import Prompt
from tests.architectures.build import build, randomised
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 9, 3, 17, 22, 40, 8]])


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every call of a model from now on."""
    seen: list[int] = []
    plain = Body.__call__

    def counted(self: Body, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(input_ids.numel())
        return plain(self, input_ids, *rest)

    monkeypatch.setattr(Body, "__call__", counted)
    return seen


def test_a_model_object_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), calls_of(monkeypatch)
    load_model(model).cache_for("shared")
    assert calls
    calls.clear()
    load_model(model).cache_for("shared")
    assert calls == []
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5e5}
    load_model(model)
    assert calls
    calls.clear()
    load_model(tiny_model())
    assert calls


def test_weights_that_were_trained_on_are_those_that_are_read() -> None:
    model = tiny_model(tied=False)
    load_model(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    loaded = load_model(model)
    with torch.inference_mode():
        ours = loaded.output_layer.logits(loaded.hidden(IDS))
        torch.testing.assert_close(ours, own_logits(model, IDS), rtol=0, atol=1e-4)


def test_a_model_that_was_tried_can_go() -> None:
    model = tiny_model()
    load_model(model).cache_for("pieces")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_logits_that_come_otherwise_are_the_model_s_own() -> None:
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda *args: args[2] * 1.5 - args[2].mean(-1, keepdim=True) ** 2)
    loaded = load_model(model)
    assert loaded.paths.kind == "own logits"
    rows = [{"id": str(n), "prompt_ids": [4, 5, 6], "response_ids": list(range(7, 12 + n))} for n in range(3)]
    trace = opd_probe.replay(model, tiny_model(seed=3), rows, k=8)
    with torch.no_grad():
        own = [
            model(input_ids=torch.tensor([[4, 5, 6, *row["response_ids"][:-1]]])).logits[0, 2:].log_softmax(-1)
            for row in rows
        ]
    values = [one[range(len(row["response_ids"])), row["response_ids"]] for one, row in zip(own, rows, strict=True)]
    np.testing.assert_allclose(trace.column("student_logprob"), torch.cat(values).numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [0.0625, 0.3, 3.0])
def test_the_scale_of_an_output_layer_is_measured_and_exact(scale: float) -> None:
    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = CohereConfig(**small, num_attention_heads=2, num_key_value_heads=1, logit_scale=scale)
    model = randomised(AutoModelForCausalLM.from_config(config), 1)
    stated = stated_layer(model)
    assert stated is not None
    stated.scale = 1.0  # as of a type that keeps it under a name that nobody knows
    measured = measured_layer(model, stated, lambda: own_logits(model, IDS))
    assert measured is not None
    assert (measured.scale, measured.softcap) == (scale, None)


def test_a_soft_cap_of_any_name_is_measured() -> None:
    model = build("recurrent_gemma", 1)
    loaded = load_model(model)
    assert loaded.output_layer.softcap == 3.0
    assert loaded.paths.kind == "decoder"


def test_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = build("qwen3_moe", 1).to(torch.bfloat16)
    torch.manual_seed(5)
    load_model(model).cache_for("padded prompts")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_next", "mamba2", "gemma2"])
def test_bf16_is_not_refused_for_its_rounding(kind: str) -> None:
    for seed in (1, 2):
        loaded = load_model(build(kind, seed).to(torch.bfloat16))
        assert (loaded.paths.kind, loaded.paths.batching) == ("decoder", "padded")
        for what in ("shared", "padded prompts", "prompts of one length"):
            assert loaded.cache_for(what) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_to_the_right_is_one_line(dtype: torch.dtype) -> None:
    model = build("bert", 1, is_decoder=False).to(dtype)
    with pytest.raises(InputError, match=r"a token changes what the model says of those before it.*causal") as error:
        load_model(model)
    assert "\n" not in str(error.value)


def test_undecided_attention_is_replayed_whole_and_sampled_from_whole_prefixes() -> None:
    """Scores that are exactly 0 tie, and which of them is taken depends on how much else there is."""
    model, teacher = (build("deepseek_v32", seed, index_n_heads=4) for seed in (1, 2))
    loaded = load_model(model)
    assert (loaded.paths.decided, loaded.paths.batching) == (False, "of one length")
    random = np.random.default_rng(0)
    prompt = random.integers(5, 300, 12).tolist()
    rows = [
        {"id": str(n), "prompt_ids": prompt, "response_ids": random.integers(5, 300, 14 + n % 3).tolist()}
        for n in range(5)
    ]
    trace = opd_probe.replay(model, teacher, rows, k=8)
    with torch.no_grad():
        own = []
        for row in rows:
            whole = torch.tensor([[*prompt, *row["response_ids"][:-1]]])
            logprobs = model(input_ids=whole).logits[0, len(prompt) - 1 :].log_softmax(-1)
            own.append(logprobs[range(len(row["response_ids"])), row["response_ids"]])
    np.testing.assert_allclose(trace.column("student_logprob"), torch.cat(own).numpy(), atol=1e-4)
    prompts = [Prompt("a", ids=tuple(prompt)), Prompt("b", ids=tuple(prompt[:5]))]
    with pytest.warns(OpdProbeWarning, match="sampled from its whole prefix alone"):
        drawn = sample_rollouts(loaded, prompts, num_rollouts=1, max_new_tokens=12)
    changed = 0
    with torch.no_grad():
        for one in drawn:
            ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
            whole = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
            for place, token in enumerate(one.response_ids, len(one.prompt_ids)):
                alone = model(input_ids=ids[:, :place]).logits[0, -1].log_softmax(-1)[token]
                assert abs(one.logprobs[place - len(one.prompt_ids)] - float(alone)) < 1e-4
                changed += bool(abs(whole[place - 1, token] - alone) > 1e-2)
    assert changed  # or nothing would be shown


def test_left_padding_that_changes_a_model_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BartConfig(
        vocab_size=64, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=48, is_decoder=True,
        max_position_embeddings=64,
    )  # fmt: skip
    loaded = load_model(randomised(AutoModelForCausalLM.from_config(config), 1))
    assert loaded.cache_for("padded prompts") is None
    assert loaded.cache_for("prompts of one length") is not None
    calls = calls_of(monkeypatch)
    prompts = [Prompt(str(n), ids=tuple(range(4, 4 + n))) for n in (3, 3, 9)]
    sample_rollouts(loaded, prompts, num_rollouts=1, max_new_tokens=4)
    assert {6, 9} <= set(calls)


def test_a_cache_that_is_wrong_behind_its_first_piece_is_not_taken_in_coarse_types() -> None:
    model = build("moshi", 1)
    assert load_model(model).cache_for("shared") is None
    assert load_model(model.bfloat16()).cache_for("shared") is None


def test_a_pad_token_by_which_positions_are_counted() -> None:
    config = RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        is_decoder=True, pad_token_id=1, max_position_embeddings=40,
    )  # fmt: skip
    loaded = load_model(randomised(AutoModelForCausalLM.from_config(config), 2))
    assert loaded.cache_for("prompts of one length") is None
    drawn = sample_rollouts(
        loaded, [Prompt("a", ids=(5, 6, 7))], num_rollouts=6, max_new_tokens=12, allowed_ids=np.array([1, 9, 11])
    )
    assert any(1 in rollout.response_ids[:-1] for rollout in drawn)
    for rollout in drawn:
        own = own_logits(loaded.model, torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]]))[0, 2:-1]
        own = own.double()[:, [1, 9, 11]].log_softmax(-1)
        places = [[1, 9, 11].index(token) for token in rollout.response_ids]
        expected = own[torch.arange(len(places)), places].tolist()
        np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)  # type: ignore[arg-type]


def test_thresholds_of_configurations() -> None:
    assert thresholds({"sliding_window": 8, "index_topk": 16, "part": {"chunk_size": 4}}) == [8, 16, 4]
    assert thresholds({"max_window_layers": 28, "num_local_experts": 8, "num_experts_per_tok": 2, "window": None}) == []
    long = Lfm2Config(vocab_size=64, hidden_size=32, num_hidden_layers=1, conv_L_cache=3)
    assert 3 in thresholds(long.to_dict())


@pytest.mark.parametrize("kind", ["qwen2_vl", "llama4"])  # no causal type of transformers; one whose text model is
def test_a_checkpoint_with_an_encoder_of_images_is_loaded_whole(kind: str, tmp_path: Path) -> None:
    model = build(kind, 1, image_text=True)
    model.save_pretrained(tmp_path)
    loaded, outline = load_model(tmp_path), read_outline(resolve_checkpoint(str(tmp_path)))
    assert type(loaded.model) is type(model)
    assert (outline.width, outline.placeholder_ids) == (loaded.width, loaded.placeholder_ids)
    assert loaded.placeholder_ids
    with torch.inference_mode():
        ours = loaded.output_layer.logits(loaded.hidden(IDS))
        torch.testing.assert_close(ours, own_logits(model, IDS), rtol=0, atol=1e-4)


def test_ids_that_are_no_text() -> None:
    model = build("aya_vision", 1, image_text=True)
    (token,) = placeholder_ids(model.config)
    assert token == model.config.image_token_id
    assert token in special_ids(model.config)
    assert placeholder_ids(Molmo2Config(image_patch_id=77)) == (77,)  # which its code calls image_token_id
    assert placeholder_ids(Qwen2Config()) == placeholder_ids(Qwen3MoeConfig()) == ()
    loaded = load_model(model)
    drawn = sample_rollouts(
        loaded, [Prompt("a", ids=(5, 6))], num_rollouts=4, max_new_tokens=8, allowed_ids=np.array([token, 7, 8])
    )
    assert token not in {one for rollout in drawn for one in rollout.response_ids}
    for part in ("prompt", "response"):
        row = {"id": "r", "prompt_ids": [5, 6], "response_ids": [7, 8, 9]}
        row[f"{part}_ids"] = [5, token, 6]
        with pytest.raises(InputError, match=f"rollout 'r': token id {token} in its {part} stands for a piece"):
            opd_probe.replay(model, model, [row])
    with pytest.raises(InputError, match=f"prompt 'a': token id {token} stands for a piece"):
        sample_rollouts(loaded, [Prompt("a", ids=(5, token))])
