"""Quantised checkpoints, written by the packages themselves, against transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from opd_probe.errors import InputError
from opd_probe.models.loading import load_model
from opd_probe.models.quantised import quantisation_of

IDS = torch.tensor([[3, 9, 4, 4, 17, 60, 2, 5, 33, 12, 8, 9]])


def _llama(width: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
    return model.eval()


def _state(place: Path, quantization: dict[str, Any]) -> Path:
    file = place / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))
    return place


def _fp8(place: Path) -> Path:
    """As DeepSeek writes it: blocks of 128 × 128, each with the inverse of its scale."""
    _llama(128).save_pretrained(place)
    weights = load_file(place / "model.safetensors")
    stored = {}
    for name, value in weights.items():
        if "proj" not in name:
            stored[name] = value.bfloat16()
            continue
        blocks = value.reshape(value.shape[0] // 128, 128, value.shape[1] // 128, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        stored[name] = (blocks / scales[:, None, :, None]).reshape(value.shape).to(torch.float8_e4m3fn)
        stored[name.replace("weight", "weight_scale_inv")] = scales
    save_file(stored, place / "model.safetensors", metadata={"format": "pt"})
    return _state(place, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})


def _mxfp4(place: Path) -> Path:
    """As gpt-oss is stored: experts in blocks of 32 values of 4 bits, each block with a power of two."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"], sliding_window=8,
    )  # fmt: skip
    GptOssForCausalLM(config).bfloat16().save_pretrained(place)
    stored = {}
    for name, value in load_file(place / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = value
            continue
        experts, size, columns = value.shape
        stored[f"{name}_blocks"] = torch.randint(0, 256, (experts, columns, size // 32, 16), dtype=torch.uint8)
        stored[f"{name}_scales"] = torch.randint(118, 124, (experts, columns, size // 32), dtype=torch.uint8)
    save_file(stored, place / "model.safetensors", metadata={"format": "pt"})
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return _state(place, {"quant_method": "mxfp4", "modules_to_not_convert": plain})


def _compressed(
    place: Path, *, bits: int, kind: str, packing: str, ignore: tuple[str, ...] = ("lm_head",), inputs: bool = False
) -> Path:
    """As llm-compressor writes it, one scale for each row."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = _llama()
    weights = QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="channel")
    activations = QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations if inputs else None)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=list(ignore), format=packing, quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            scale, zero = calculate_qparams(module.weight.amin(1, True), module.weight.amax(1, True), weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=packing)
    compressor.compress_model(model)
    model.save_pretrained(place)
    compressor.update_config(place)
    return place


def _bitsandbytes(place: Path, **options: Any) -> Path:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    _llama().save_pretrained(place / "full")
    settings = BitsAndBytesConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(place / "full", quantization_config=settings, device_map="cpu")
    model.save_pretrained(place / "packed")
    return place / "packed"


def _torchao(place: Path, kind: str = "Int8WeightOnlyConfig", bits: int | None = None, **options: Any) -> Path:
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    _llama().save_pretrained(place / "full")
    weights = {} if bits is None else {"weight_dtype": getattr(torch, f"int{bits}")}
    settings = TorchAoConfig(getattr(torchao, kind)(**weights), **options)
    model = AutoModelForCausalLM.from_pretrained(place / "full", quantization_config=settings, device_map="cpu")
    model.save_pretrained(place / "packed")
    return place / "packed"


MADE = {
    "fp8": (_fp8, "fp8", 8),
    "mxfp4": (_mxfp4, "mxfp4", 4),
    "compressed-tensors, 4 bits": (
        lambda place: _compressed(place, bits=4, kind="int", packing="pack-quantized"),
        "compressed-tensors",
        4,
    ),
    "compressed-tensors, fp8": (
        lambda place: _compressed(place, bits=8, kind="float", packing="float-quantized"),
        "compressed-tensors",
        8,
    ),
    "compressed-tensors, the head too": (
        lambda place: _compressed(place, bits=8, kind="int", packing="pack-quantized", ignore=()),
        "compressed-tensors",
        8,
    ),
    "bitsandbytes, 4 bits": (lambda place: _bitsandbytes(place, load_in_4bit=True), "bitsandbytes", 4),
    "bitsandbytes, 8 bits": (lambda place: _bitsandbytes(place, load_in_8bit=True), "bitsandbytes", 8),
    "bitsandbytes, the head too": (
        lambda place: _bitsandbytes(place, load_in_4bit=True, llm_int8_skip_modules=["model.embed_tokens"]),
        "bitsandbytes",
        4,
    ),
    "compressed-tensors, its inputs too": (
        lambda place: _compressed(place, bits=8, kind="int", packing="int-quantized", inputs=True),
        "compressed-tensors",
        8,
    ),
    "torchao": (_torchao, "torchao", 8),
    "torchao, its inputs too": (
        lambda place: _torchao(place, "Int8DynamicActivationInt8WeightConfig"),
        "torchao",
        8,
    ),
    "torchao, 4 bits": (lambda place: _torchao(place, "IntxWeightOnlyConfig", 4), "torchao", 4),
    "torchao, the head too": (
        lambda place: _torchao(place, modules_to_not_convert=["model.embed_tokens"]),
        "torchao",
        8,
    ),
}


@pytest.mark.parametrize(("make", "method", "bits"), MADE.values(), ids=MADE.keys())
@torch.no_grad()
def test_a_quantised_model_says_what_transformers_says(tmp_path: Path, make: Any, method: str, bits: int) -> None:
    place = make(tmp_path)
    own = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, device_map="cpu").eval()
    try:
        own(input_ids=IDS)
    except RuntimeError:  # fp8, of which transformers leaves weights of two types
        own = own.float()
    expected = own(input_ids=IDS).logits[0].log_softmax(-1)
    loaded = load_model(place, dtype="float32")
    outputs = loaded.outputs([IDS[0].numpy()], [np.arange(IDS.shape[1])])
    assert torch.allclose(loaded.output_layer.logits(outputs).log_softmax(-1), expected, atol=1e-4)
    assert loaded.identity["quantisation"] == {"method": method, "bits": bits}
    assert loaded.identity["dtype"] == "float32"


NAMED_BITS = {
    "Int8DynamicActivationInt4WeightConfig": 4,
    "int8_dynamic_activation_int4_weight": 4,
    "Float8DynamicActivationFloat8WeightConfig": 8,
    "int4_weight_only": 4,
}


@pytest.mark.parametrize(("name", "bits"), NAMED_BITS.items())
def test_the_bits_are_those_of_the_weights(name: str, bits: int) -> None:
    config = LlamaConfig(quantization_config={"quant_method": "torchao", "quant_type": name})
    assert quantisation_of(config) == {"method": "torchao", "bits": bits}


UNREADABLE = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum|gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
    "aqlm": ({"quant_method": "aqlm"}, "aqlm"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "GPU"),
    "unknown": ({"quant_method": "no-such-method"}, "transformers does not read"),
}


@pytest.mark.parametrize(("stated", "match"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_here_is_one_line(tmp_path: Path, stated: dict[str, Any], match: str) -> None:
    _llama().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"is quantised with .*({match})") as caught:
        load_model(_state(tmp_path, stated))
    assert "\n" not in str(caught.value)


def test_an_adapter_on_a_model_that_rounds_its_inputs_is_run_as_it_runs_itself(tmp_path: Path) -> None:
    """Of activations that bitsandbytes takes for outliers the scales depend on the whole call."""
    import peft

    place = _bitsandbytes(tmp_path, load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(place, device_map="cpu")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj", "lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(tmp_path / "adapter")
        expected = adapted(input_ids=IDS).logits[0].log_softmax(-1)
        loaded = load_model(tmp_path / "adapter")
        outputs = loaded.outputs([IDS[0].numpy(), IDS[0, :5].numpy()], [np.arange(IDS.shape[1]), np.arange(5)])
        ours = loaded.output_layer.logits(outputs[: IDS.shape[1]]).log_softmax(-1)
    assert torch.allclose(ours, expected, atol=1e-4)
