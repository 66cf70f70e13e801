"""Small random models of any type that transformers has, with knobs off their defaults and thresholds within reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCABULARY = 403

CAUSAL: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
IMAGE_TEXT: tuple[str, ...] = tuple(n for n in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if n not in CAUSAL)

_SIZES = {
    64: "hidden_size d_model n_embd dim model_dim embed_dim word_embed_proj_dim embedding_size decoder_hidden_size "
    "emb_dim hidden_dim embedding_dim hidden_size_global cross_attention_hidden_size projection_dim",
    96: "intermediate_size ffn_dim d_ff ffn_hidden_size n_inner encoder_ffn_dim decoder_ffn_dim dim_ff dff "
    "shared_intermediate_size block_ff_dim dense_intermediate_size intermediate_size_mlp feed_forward_size",
    32: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "expert_ffn_hidden_size prefix_dense_intermediate_size moe_shared_intermediate_size lru_width",
    4: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks depth num_attention_heads n_head num_heads encoder_attention_heads "
    "decoder_attention_heads n_heads num_encoder_attention_heads num_decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts linear_num_heads linear_num_key_heads",
    2: "num_key_value_heads num_kv_heads n_head_kv kv_n_heads num_experts_per_tok moe_topk moe_k moe_top_k "
    "top_k_experts num_experts_per_token mamba_n_groups mamba_ngroups kv_mixers num_global_key_value_heads "
    "swa_num_key_value_heads num_swa_key_value_heads",
    16: "head_dim kv_channels q_lora_rank kv_lora_rank qk_nope_head_dim v_head_dim global_head_dim mamba_d_state "
    "state_size ssm_state_size mamba_headdim attention_head_dim linear_key_head_dim linear_value_head_dim "
    "hidden_size_per_layer_input kv_head_dim index_head_dim mamba_d_head mamba_head_dim swa_head_dim linear_head_dim "
    "index_n_heads",
    8: "qk_rope_head_dim rotary_dim sliding_window attention_window local_attention window_size sliding_window_size "
    "attention_chunk_size index_topk attention_window_size window_length mamba_dt_rank laurel_rank chunk_size "
    "mamba_chunk_size linear_num_value_heads",
    256: "max_position_embeddings n_positions n_ctx max_seq_len seq_length max_target_positions "
    "max_source_positions max_sequence_length context_length block_size",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size vocab_size_or_config_json_file",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
"""What every dimension and every threshold is made: by its name, whatever the type."""

KNOBS: dict[str, float | bool] = {
    "logit_scale": 0.37, "logits_scaling": 3.0, "final_logit_softcapping": 3.0, "final_logit_softcap": 3.0,
    "attn_logit_softcapping": 5.0, "lm_head_multiplier": 0.4, "embedding_multiplier": 2.3, "residual_multiplier": 0.7,
    "attention_multiplier": 0.31, "query_pre_attn_scalar": 11.0, "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.9, "key_multiplier": 0.7, "ssm_in_multiplier": 0.8, "ssm_out_multiplier": 0.9,
    "logits_soft_cap": 3.0, "logit_softcapping": 3.0, "scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 16,
    "logits_scale": 0.4, "output_logit_soft_cap": 3.0, "router_jitter_noise": 0.0, "lm_head_bias": True,
    "mup_width_multiplier": 2.0,
}  # fmt: skip

_DECODERS = """
    bert big_bird camembert data2vec-text electra ernie megatron-bert roberta roberta-prelayernorm roc_bert roformer
    xlm-roberta xlm-roberta-xl bert-generation rembert xmod reformer
"""
DECODERS = tuple(_DECODERS.split())
"""Types that are encoders unless their configuration says ``is_decoder``."""

TWO_SIDED: dict[str, dict[str, Any]] = {name: {"is_decoder": False} for name in DECODERS if name != "reformer"} | {
    "xlm": {"causal": False},
}
"""Configurations of causal types in which every token sees all others."""


def _sections(*dimensions: int) -> dict[str, Any]:
    """Rotary parameters with sections of time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(dimensions)}}


_HALVES = ["linear_attention", "full_attention"] * 2
_BY_LAYER = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        name: {"rope_type": "default", "rope_theta": 1e4} for name in ("sliding_attention", "full_attention")
    },
}
_NANO = {"num_hidden_layers": 10, "num_kv_shared_layers": 5, "activation_sparsity_pattern": [0.5] * 5 + [0.0] * 5}
_INDEXED = {
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "linear_num_value_heads": 8,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2}
_LOOP = {
    "unpadded_vocab_size": 399, "num_hidden_layers": 6, "n_layers_per_attn_res_block": 2, "loop_layer_index_start": 2,
    "loop_layer_index_end": 4, "loop_num_passes": 2, "loop_gate_rank": 8, "rel_extent": 8, "log_scaling_n_floor": 8,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "text_config": {"output_vocab_size": 399}, "vision_config": {"codebook_size": 30},
        "audio_config": {"codebook_size": 30, "codebook_dim": 64}, "image_token_offset": 320, "audio_token_offset": 350,
    },
    "apertus1p5_text": {"output_vocab_size": 399},
    "bailing_hybrid": {"layer_types": _HALVES, "head_dim": 16},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "d_model": 64, "n_heads": 4, "n_layers": 3,
    },
    "deepseek_v2": {
        "num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1,
    },
    "dory": {"initializer_range": 1.0, "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots3_note": {
        "vision_config": {
            "per_layer_config": {}, "mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 64, "adapter_out_dim": 64,
        },
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64}, "text_config": {"num_key_value_heads": 4},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": _NANO,
    "gemma3n": {"text_config": _NANO},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8},
    "granitemoehybrid": {**_MAMBA, "mamba_expand": 2, "layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16}, "hunyuan_v1_moe": {"head_dim": 16},
    "inkling2_loop": {"text_config": _LOOP, "vision_config": {"text_hidden_size": 64}}, "inkling2_loop_text": _LOOP,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "expand": 2, "chunk_size": 8},
    "blt": {
        "num_hidden_layers": 4, "encoder_hash_byte_group_vocab": 500, "encoder_hash_byte_group_size": [3, 4],
        "patching_threshold": 0.1, "local_attention_window_len": 8,
    },
    "chameleon": {"vocabulary_map": {"<image>": 400, "IMGIMGBZ": 401, "IMGIMGCZ": 402}},
    "cohere_compass": {"text_config": _BY_LAYER}, "cohere_compass_text": _BY_LAYER,
    "cosmos3_edge": {"text_config": _sections(2, 3, 3)},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2}},
    "glm5_next": {"text_config": {"index_kpool": 2}},
    "granite4_vision": {"deepstack_layer_map": [[1, 0]], "downsample_rate": "1/2"},
    "granite_docling": {"vision_config": {"out_hidden_size": 64}},
    "hunyuan_vl": {"text_config": {"head_dim": 16} | _sections(2, 2, 2, 2)},
    "inkling2": {"vision_config": {"text_hidden_size": 64}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 1]}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "ministral": {"head_dim": 16}, "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "reformer": {
        "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "local"],
        "num_buckets": 4, "lsh_num_chunks_before": 1, "local_attn_chunk_length": 8,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 48},
    "qwen4_exp": {"text_config": _INDEXED}, "qwen4_exp_text": _INDEXED,
    "xlm": {"causal": True},
    "xlnet": {"max_position_embeddings": ...},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"chunk_size": 8, "qk_dim_factor": 1.0},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba"] * 2},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What some types need beside that, so that their parts fit each other; ``...`` takes a value away."""
for _name in ("qwen2_vl", "qwen2_5_vl", "glm4v", "glm46v", "glm_ocr", "glmga", "paddleocr_vl"):
    OWN[_name] = {"text_config": _sections(2, 3, 3)}
OWN["hy_v4_vl"] = {"text_config": _sections(2, 1, 1)}
OWN["glm4v_moe"] = {"text_config": _sections(2, 1, 1)}
OWN["ernie4_5_vl_moe"] = {"text_config": _sections(3, 3, 2)}
OWN["qwen2_5_omni_thinker"] = {"text_config": _sections(2, 3, 3)}
for _name in DECODERS:
    OWN.setdefault(_name, {})["is_decoder"] = True


_TIMM = "its encoder of images is one of timm, which the tests do without"
_DRAFTER = "drafts for a larger model, whose keys and values it reads; no model of its own"
_SOUND = "says codes of sound in several codebooks, and no text"
NOT_BUILT = {
    "evolla": "reads a protein beside the text; no model of text alone",
    "fast_vlm": _TIMM, "gemma3n": f"{_TIMM}; its text model is gemma3n_text", "perception_lm": _TIMM,
    "gemma4_assistant": _DRAFTER, "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _SOUND, "musicgen_melody": _SOUND,
}  # fmt: skip
"""Why some types cannot be built small, in words."""


def build(kind: str, seed: int, *, image_text: bool = False, **changes: Any) -> PreTrainedModel:
    """A model with random weights that are large enough for the past to matter, in evaluation mode.

    Args:
        changes: of the configuration.
    """
    configuration: Any = CONFIG_MAPPING[kind]
    values = _merged(_merged(_small(configuration), OWN.get(kind, {})), changes)
    torch.manual_seed(seed)
    auto: Any = AutoModelForImageTextToText if image_text else AutoModelForCausalLM
    return randomised(auto.from_config(configuration(**values), dtype=torch.float32), seed)


def _small(configuration: Any, depth: int = 0) -> dict[str, Any]:
    """The values that make a configuration small, its parts included."""
    plain = configuration()
    values = {name: found for name, value in plain.to_dict().items() if (found := _value(name, value)) is not None}
    stated = plain.to_dict()
    if "qk_rope_head_dim" in stated and "head_dim" in values:
        values["head_dim"] = 8
    if "kv_lora_rank" in stated and stated.get("num_key_value_heads"):
        values["num_key_value_heads"] = 4
    values |= {
        name: size for name, size in (("n_group", 2), ("num_expert_group", 2), ("topk_group", 1)) if stated.get(name)
    }
    if {"mamba_expand", "mamba_n_heads", "mamba_num_heads"} & stated.keys():
        wanted = {"mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_ssm": 128}
        wanted |= dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16)
        values |= {name: size for name, size in wanted.items() if name in stated}
    for name, part in (getattr(configuration, "sub_configs", None) or {}).items() if depth < 3 else ():
        kind = type(getattr(plain, name, None)) if part.__name__ == "AutoConfig" else part
        if kind is type(None):
            continue
        try:
            values[name] = _small(kind, depth + 1)
        except (TypeError, ValueError, KeyError, AttributeError):  # a part that is not there without its whole
            continue
        if getattr(kind, "model_type", ""):
            values[name]["model_type"] = kind.model_type
    return values


def _value(name: str, value: Any) -> Any:
    """What one value of a configuration is made; None: left as it is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in SIZES and number and value:
        return SIZES[name] if isinstance(value, int) else None
    if name in KNOBS and (number or value is None or isinstance(value, bool)):
        if isinstance(KNOBS[name], bool) != isinstance(value, bool):
            return None
        return int(KNOBS[name]) if type(value) is int else KNOBS[name]
    if name.endswith(("token_id", "token_index", "_id")):
        if isinstance(value, int) and value >= VOCABULARY:
            return VOCABULARY - 1 - sum(map(ord, name)) % 12
        if isinstance(value, (list, tuple)) and any(isinstance(one, int) and one >= VOCABULARY for one in value):
            return 2
    if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
        return 0.0
    return None


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in over.items():
        if value is ...:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged


@torch.no_grad()
def randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model with weights of a size at which every layer speaks and no state forgets the past."""
    generator = torch.Generator().manual_seed(seed)
    head: Any = model.get_output_embeddings()
    output = id(head.weight) if hasattr(head, "weight") else None
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        noise = torch.randn(weight.shape, generator=generator)
        last = name.rsplit(".", 1)[-1]
        if "A_log" in last or last in ("D", "dt_bias", "time_decay", "time_first", "sinks") or weight.dim() < 2:
            weight.add_(0.15 * noise)
        elif id(weight) in embeddings and id(weight) != output:
            weight.copy_(0.5 * noise)
        else:
            weight.copy_(noise * (2.0 if id(weight) == output else 1.0) / math.sqrt(weight.shape[-1]))
    return model.eval().float()
