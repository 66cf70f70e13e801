"""Models of GGUF files: read by transformers, with what it leaves out of them put back, or refused."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from opd_probe.errors import InputError
from opd_probe.models.formats import gguf
from opd_probe.models.formats.headers import Headers
from opd_probe.models.guards import one_line, quiet
from opd_probe.models.placement import DeviceMap
from opd_probe.models.quantised import keep_stated

FACTORS = "rope_freqs.weight"
"""Divisors of the frequencies of rotary embeddings, one for each: how llama.cpp keeps the scaling of Llama 3.1."""

_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of those of 27B parameters, by which llama.cpp knows that their queries are scaled by another width."""

_OF_NO_WEIGHT = ("general.", "tokenizer.", "GGUF.", "quantize.", "split.", "imatrix.")
"""Beginnings of keys that do not shape a model's numbers."""

_SAME = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale")
"""Keys whose names and values are those of transformers' configurations."""

_SCALING = "rope.scaling."


def gguf_config(path: Path) -> Any:
    """The configuration that a file states, with what transformers leaves out put back.

    Raises:
        InputError: the package gguf is not installed, an architecture that transformers does not read, or a key that
            is neither read nor put back.
    """
    values = gguf.metadata(path)
    architecture = str(values.get("general.architecture", "?"))
    with one_line(f"{path}", f"its architecture {architecture} cannot be read"), quiet():
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    own = {name.removeprefix(f"{architecture}."): value for name, value in values.items()}
    _put_back(path, config, own, architecture)
    left = [name for name in own if not _is_read(name, own[name], config, architecture)]
    if left:
        raise InputError(
            f"{path}: says {architecture}.{left[0]}: {own[left[0]]}, which transformers has no place for; without it "
            "this is another model; expected the model's own weights (safetensors)"
        )
    return config


def read_gguf(path: Path, dtype: torch.dtype | None, place: torch.device | DeviceMap) -> PreTrainedModel:
    """The model of a file, its weights unpacked.

    Args:
        dtype: of the weights; None: as stored, float32 for packed ones.

    Raises:
        InputError: as :func:`gguf_config`; or weights that are missing, or have no place in the model.
    """
    config, headers = gguf_config(path), gguf.headers(path)
    alone = isinstance(place, torch.device)
    bars = contextlib.redirect_stderr(io.StringIO())  # transformers draws one whatever it is told
    with one_line(f"{path}"), quiet(), bars:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=config,
            dtype=dtype or _stored(headers),
            local_files_only=True,
            output_loading_info=True,
            **({} if alone else {"device_map": place}),
        )
        model, info = loaded
        _check_whole(path, model, info, headers)
        if FACTORS in headers:
            _divide_frequencies(path, model)
        bits = _bits(headers)
        keep_stated(model, None if bits is None else {"method": "gguf", "bits": bits})
        moved: PreTrainedModel = model.to(place) if alone else model
    return moved


def _stored(headers: Headers) -> torch.dtype:
    """Of matrices, since norms stay in float32."""
    types = {header.dtype for header in headers.values() if len(header.shape) > 1}
    stored: torch.dtype = getattr(torch, types.pop(), torch.float32) if len(types) == 1 else torch.float32
    return stored


def _bits(headers: Headers) -> int | None:
    """Of the type that most values are packed in; None where they are plain."""
    counts: dict[str, int] = {}
    for header in headers.values():
        counts[header.dtype] = counts.get(header.dtype, 0) + header.values
    most = max(counts, key=lambda kind: counts[kind])
    digits = "" if "float" in most else "".join(c for c in most.split("_")[0] if c.isdigit())
    return int(digits) if digits else None


def _put_back(path: Path, config: Any, own: Mapping[str, Any], architecture: str) -> None:
    for name in _SAME:
        if name in own and hasattr(config, name):
            setattr(config, name, own[name])
    if architecture in _LARGEST_GEMMA and hasattr(config, "query_pre_attn_scalar"):
        heads = int(own["attention.head_count"])
        large = int(own["block_count"]) == _LARGEST_GEMMA[architecture]
        config.query_pre_attn_scalar = int(own["embedding_length"]) // heads if large else config.head_dim
    kind = own.get(f"{_SCALING}type", "none")
    if kind not in ("none", "") and not _has_scaling(config):
        if kind not in _SCALINGS:
            raise InputError(
                f"{path}: its rotary embeddings are scaled by {kind}, which transformers does not read from GGUF; "
                f"expected {' or '.join(_SCALINGS)}, or the model's own weights (safetensors)"
            )
        _scale(config, _SCALINGS[kind](own))


def _linear(own: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": float(own[f"{_SCALING}factor"])}


def _yarn(own: Mapping[str, Any]) -> dict[str, Any]:
    """llama.cpp scales queries and keys as transformers does it by default: by 1 + 0.1 · ln(factor)."""
    names = {
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    stated = {new: own[f"{_SCALING}{old}"] for old, new in names.items() if f"{_SCALING}{old}" in own}
    return {"rope_type": "yarn", "factor": float(own[f"{_SCALING}factor"]), **stated}


_SCALINGS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"linear": _linear, "yarn": _yarn}

_SCALING_KEYS = {
    "linear": ("type", "factor", "finetuned"),
    "yarn": ("type", "factor", "finetuned", "original_context_length", "yarn_beta_fast", "yarn_beta_slow"),
}


def _by_layer(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters of the layers that look at everything; of all, where there is one kind."""
    stated: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    whole = stated.get("full_attention")
    return [whole] if isinstance(whole, dict) else [stated]


def _has_scaling(config: Any) -> bool:
    """Whether transformers itself has read the scaling, as it does of some architectures."""
    return any(one.get("rope_type", "default") != "default" for one in _by_layer(config))


def _scale(config: Any, scaling: Mapping[str, Any]) -> None:
    for one in _by_layer(config):
        one.update(scaling)


def _is_read(name: str, value: Any, config: Any, architecture: str) -> bool:
    """Whether a key shapes the configuration already, or does not shape it at all."""
    if name.startswith(_OF_NO_WEIGHT) or name in _SAME:
        return True
    if name.startswith(_SCALING):
        kind = next((one.get("rope_type", "default") for one in _by_layer(config)), "default")
        if kind == "default":  # a factor without a type scales nothing, in llama.cpp too
            return name.removeprefix(_SCALING) in ("type", "factor", "finetuned", "original_context_length")
        return name.removeprefix(_SCALING) in _SCALING_KEYS.get(kind, ())
    if name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(value) == int(width) or _known(architecture).get(name) is not None
    if name in _known(architecture) or architecture in _whole():
        return True
    return value in (0, 0.0, False, "none", "")  # what is switched off


def _known(architecture: str) -> Mapping[str, Any]:
    """The keys of an architecture that transformers reads, and what they are to it."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    names = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
    known: Any = GGUF_CONFIG_MAPPING.get(names.get(architecture, architecture), {})
    return known  # type: ignore[no-any-return]


def _whole() -> Mapping[str, Any]:
    """Architectures of which transformers reads every key."""
    try:
        reader = import_module("transformers.integrations.gguf.gguf_config_mapping")
    except ImportError:  # of an older release
        return {}
    known: Mapping[str, Any] = reader.GGUF_CONFIG_ARCHS
    return known


def _check_whole(path: Path, model: PreTrainedModel, info: Mapping[str, Any], headers: Headers) -> None:
    """Refuse a model that lacks weights, or a file with weights that went nowhere: transformers passes over both."""
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{path}: the weights lack {missing[0]} ({len(missing)} missing in all); copy the file again")
    stored = {name: header.values for name, header in headers.items() if name != FACTORS}
    own = sum(parameter.numel() for parameter in model.parameters())
    if sum(stored.values()) != own:
        strange = next((name for name in sorted(stored) if not name.startswith(("blk.", "token_embd", "output"))), "")
        beside = f", {strange} among them" if strange else ""
        raise InputError(
            f"{path}: holds {sum(stored.values())} values{beside}, the model that transformers makes of it has {own}: "
            "some have no place in it, and it would be another model; expected the model's own weights (safetensors)"
        )


def _divide_frequencies(path: Path, model: PreTrainedModel) -> None:
    factors = next(tensor for tensor in gguf.open_file(path).tensors if tensor.name == FACTORS)
    divisors = torch.from_numpy(factors.data.astype("float32").reshape(-1).copy())
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    if not rotary or any(module.inv_freq.shape != divisors.shape for module in rotary) or _has_scaling(model.config):
        raise InputError(
            f"{path}: {FACTORS} has {divisors.numel()} values, for which this architecture has no place in "
            "transformers; expected the model's own weights (safetensors)"
        )
    for module in rotary:
        buffers = (module.inv_freq, getattr(module, "original_inv_freq", None))
        for buffer in {id(one): one for one in buffers if isinstance(one, torch.Tensor)}.values():
            buffer.div_(divisors.to(buffer))
