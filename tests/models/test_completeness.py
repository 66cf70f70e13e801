"""Values that a model has no place for are refused, from headers where they show it, else when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.models.loading import load_model
from opd_probe.runs.inventory import inventory

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]


def _llama(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, **options))


def _saved(place: Path, model: PreTrainedModel, change: Change, settings: dict[str, Any] | None = None) -> Path:
    model.save_pretrained(place)
    file, config = place / "model.safetensors", place / "config.json"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), **(settings or {})}))
    return place


def _as_it_is(weights: Weights) -> Weights:
    return weights


def _renamed(name: Callable[[str], str]) -> Change:
    return lambda weights: {name(key): value for key, value in weights.items()}


def _with(**more: Tensor) -> Change:
    return lambda weights: {**weights, **{name.replace("__", "."): value for name, value in more.items()}}


def _fp8(scale: str) -> Change:
    def change(weights: Weights) -> Weights:
        projections = [name for name in weights if "proj" in name]
        scales = {name.replace("weight", scale): torch.ones(1) for name in projections}
        return {**weights, **{name: weights[name].to(torch.float8_e4m3fn) for name in projections}, **scales}

    return change


SHOWN: dict[str, tuple[Change, str]] = {
    "fp8 with inverse scales": (_fp8("weight_scale_inv"), r"down_proj\.weight_scale_inv .*no quantization_config"),
    "fp8 with scales": (_fp8("weight_scale"), r"down_proj\.weight_scale .*no quantization_config"),
    "whole numbers": (
        lambda weights: {name: v.to(torch.int8) if "proj" in name else v for name, v in weights.items()},
        r"down_proj\.weight \(int8\).*no quantization_config",
    ),
    "packed weights": (_with(model__layers__0__mlp__up_proj__qweight=torch.ones(4, 48).int()), r"up_proj\.qweight"),
    "a compiled model": (_renamed(lambda name: f"_orig_mod.{name}"), r"_orig_mod\.lm_head\.weight .*torch\.compile"),
    "compiled layers": (_renamed(lambda name: name.replace("layers.1.", "layers.1._orig_mod.")), r"torch\.compile"),
    "a parallel model": (_renamed(lambda name: f"module.{name}"), r"module\.lm_head\.weight .*DistributedDataParallel"),
    "a model around which an adapter was": (_renamed(lambda name: f"base_model.model.{name}"), r"peft gives it"),
    "a model beside a value head": (
        _renamed(lambda name: f"pretrained_model.{name}"),
        r"TRL's model with a value head",
    ),
    "an unmerged adapter": (
        _with(model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(2, 32)),
        r"lora_A\.weight is of an adapter that was neither merged",
    ),
    "weights kept elsewhere": (
        lambda weights: {name: v[:0].clone() if "proj" in name else v for name, v in weights.items()},
        r"down_proj\.weight is empty .*ZeRO-3",
    ),
}


@pytest.mark.parametrize(("change", "match"), SHOWN.values(), ids=SHOWN.keys())
def test_what_headers_show_is_refused_by_loading_and_listed(tmp_path: Path, change: Change, match: str) -> None:
    place = _saved(tmp_path / "checkpoint-3", _llama(), change)
    with pytest.raises(InputError, match=match) as caught:
        load_model(place)
    assert "\n" not in str(caught.value)
    (row,) = inventory([str(tmp_path)])
    assert row["refused"] is not None
    assert row["refused"] in str(caught.value)


UNPLACED: dict[str, tuple[Callable[[], PreTrainedModel], Change, dict[str, Any], str]] = {
    "biases of attention": (
        lambda: _llama(attention_bias=True),
        _as_it_is,
        {"attention_bias": False},
        r"k_proj\.bias .*config\.json says attention_bias: false",
    ),
    "biases of other layers": (
        lambda: _llama(mlp_bias=True),
        _as_it_is,
        {"mlp_bias": False},
        r"down_proj\.bias .*mlp_bias: false",
    ),
    "more layers": (_llama, _as_it_is, {"num_hidden_layers": 1}, r"layers\.1\..*num_hidden_layers: 1"),
    "more layers than are said to guess ahead": (
        _llama,
        _with(model__layers__3__mlp__up_proj__weight=torch.ones(48, 32)),
        {"num_nextn_predict_layers": 1},
        r"layers\.3\..*num_hidden_layers: 2",
    ),
    "norms of another architecture": (
        lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS)),
        _as_it_is,
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        r"k_norm\.weight .*model_type: llama",
    ),
    "a model in a wrapper that nobody knows": (
        _llama,
        _renamed(lambda name: f"policy.{name}"),
        {},
        r"lack lm_head\.weight \(\d+ missing in all; policy\.lm_head\.weight is there\)",
    ),
    "a bias of attention that is no mask": (
        _llama,
        _with(model__layers__0__self_attn__bias=torch.ones(32)),
        {},
        r"self_attn\.bias .*model_type: llama",
    ),
    "what a quantiser measured": (
        _llama,
        _with(model__layers__0__mlp__up_proj__weight_quantizer___amax=torch.ones(1)),
        {},
        r"_amax .*no quantization_config",
    ),
    "scales of their own": (
        _llama,
        _with(model__layers__0__mlp__up_proj__row_scales=torch.ones(48)),
        {},
        r"row_scales .*no quantization_config",
    ),
    "a bias of the head": (_llama, _with(lm_head__bias=torch.ones(64)), {}, r"lm_head\.bias .*model_type: llama"),
    "another head": (_llama, _with(v_head__summary__weight=torch.ones(1, 32)), {}, r"v_head\.summary\.weight"),
}


@pytest.mark.parametrize(("model", "change", "settings", "match"), UNPLACED.values(), ids=UNPLACED.keys())
def test_a_value_without_a_place_is_refused_by_its_name_and_the_field(
    tmp_path: Path, model: Callable[[], PreTrainedModel], change: Change, settings: dict[str, Any], match: str
) -> None:
    place = _saved(tmp_path, model(), change, settings)
    with pytest.raises(InputError, match=match) as caught:
        load_model(place)
    assert "\n" not in str(caught.value)


OF_NO_USE: dict[str, tuple[dict[str, Any], Change, dict[str, Any]]] = {
    "rotary buffers": ({}, _with(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8)), {}),
    "rotary tables and causal masks": (
        {},
        _with(
            model__layers__0__self_attn__rotary_emb__cos_cached=torch.ones(8, 16),
            model__layers__0__self_attn__bias=torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            model__layers__0__self_attn__masked_bias=torch.tensor(-1e4),
        ),
        {},
    ),
    "notes of Transformer Engine": (
        {},
        lambda weights: {
            **weights,
            "model.layers.0.mlp.up_proj._extra_state": torch.zeros(4, dtype=torch.uint8),
            "model.layers.0.self_attn._extra_state": torch.zeros(0, dtype=torch.uint8),
        },
        {},
    ),
    "heads that guess ahead": (
        {},
        _with(mtp__fc__weight=torch.ones(32, 64), medusa_head__0__0__linear__weight=torch.ones(32, 32)),
        {},
    ),
    "named layers that guess ahead": (
        {},
        lambda weights: {**weights, "model.mtp_layers.0.input_proj.weight": torch.ones(32, 64)},
        {},
    ),
    "a tied head that is stored": (
        {"tie_word_embeddings": True},
        lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        {},
    ),
    "layers that guess ahead": (
        {},
        _with(model__layers__2__mlp__up_proj__weight=torch.ones(48, 32)),
        {"num_nextn_predict_layers": 1},
    ),
}


@pytest.mark.parametrize(("options", "change", "settings"), OF_NO_USE.values(), ids=OF_NO_USE.keys())
def test_what_is_declared_of_no_use_changes_nothing(
    tmp_path: Path, options: dict[str, Any], change: Change, settings: dict[str, Any]
) -> None:
    model = _llama(**options).eval()
    ids = torch.tensor([[3, 9, 4, 17, 60, 2, 5]])
    loaded = load_model(_saved(tmp_path, model, change, settings))
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_head_that_is_stored_is_used_though_config_json_ties_it(tmp_path: Path) -> None:
    other = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    place = _saved(tmp_path, _llama(tie_word_embeddings=True), _with(lm_head__weight=other))
    with pytest.warns(OpdProbeWarning, match="tie_word_embeddings: true, and an output layer is stored"):
        loaded = load_model(place)
    assert torch.equal(loaded.output_layer.weight, other)


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    model = _llama()
    model.save_pretrained(tmp_path / "checkpoint-3", max_shard_size="20KB")
    load_model(tmp_path / "checkpoint-3")
    save_file(dict(model.state_dict()), tmp_path / "checkpoint-3" / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors beside model\.safetensors\.index\.json"):
        load_model(tmp_path / "checkpoint-3")
    (row,) = inventory([str(tmp_path)])
    assert "two sets of weights" in row["refused"]
