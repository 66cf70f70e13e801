"""GGUF files as llama.cpp's converter writes them, of tiny real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    *,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    packed: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """A model in a file, its matrices packed or as they are.

    Args:
        keys: more of what the file says, below the architecture.
        tensors: more of what it holds.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    parameters = config.rope_parameters
    writer.add_rope_freq_base(parameters.get("full_attention", parameters)["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    else:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    for name, value in (keys or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
        add[type(value)](f"{architecture}.{name}", value)
    for name, values in {**_converted(model, architecture), **(tensors or {})}.items():
        if packed is not None and values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, packed), raw_dtype=packed)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(model: PreTrainedModel, architecture: str) -> dict[str, NDArray[np.float32]]:
    config, found = model.config, {}
    names = {**_NAMES, **_NORMS[architecture]}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        module = name.removesuffix(".weight")
        if module.startswith("model.layers."):
            number, _, part = module.removeprefix("model.layers.").partition(".")
            new = f"blk.{number}.{names[part]}.weight"
        else:
            new = f"{names[module]}.weight"
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma3" and values.ndim == 1:
            values = values + 1
        found[new] = np.ascontiguousarray(values)
    return found


def llama3_factors(model: PreTrainedModel) -> NDArray[np.float32]:
    """What llama.cpp's converter makes of Llama 3.1's scaling: by how much each frequency is divided."""
    stated = model.config.rope_parameters
    width = model.config.head_dim
    plain = 1 / stated["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high = stated["low_freq_factor"], stated["high_freq_factor"]
    original, factor = stated["original_max_position_embeddings"], stated["factor"]
    factors = []
    for frequency in plain.tolist():
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
