"""Every stored value has a place in the model, and every value of the model is stored."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from opd_probe.errors import InputError
from opd_probe.models.formats.headers import BYTES, Headers, is_book_keeping, is_packing
from opd_probe.models.guards import quiet

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

_GUESSES = re.compile(r"^(model\.)?(mtp|mtp_\w+|medusa_heads?)\.")
"""Parts beside a model that guess tokens ahead; what it says of the next one they only read."""

_COMPUTED = re.compile(r"\.(rotary_emb\.(inv_freq|(cos|sin)_cached)|(self_)?attn(ention)?\.(masked_)?bias)$")
"""What older code stored of what it computes: tables of rotary embeddings, and causal masks."""


def check_complete(path: Path, model: PreTrainedModel, info: dict[str, Any], headers: Headers) -> None:
    """Refuse a model that transformers made of weights that are not exactly its own.

    transformers fills what is missing with random numbers, and passes over what it has no place for. What it declares
    to be of no use, such as rotary buffers of old files, is not among what it reports.

    Args:
        info: what ``from_pretrained`` reports of a load.
        headers: of the stored weights.

    Raises:
        InputError: names the first weight, and the field of config.json that has no place for it.
    """
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        instead = next((f"; {name} is there" for name in sorted(headers) if name.endswith(f".{missing[0]}")), "")
        raise InputError(
            f"checkpoint {path}: the weights lack {missing[0]} ({len(missing)} missing in all{instead}); expected "
            "every weight of the architecture in config.json, under its name there; save the checkpoint again"
        )
    unplaced = sorted(info["unexpected_keys"])
    if unplaced:
        elsewhere = {*_ahead(model.config, unplaced), *_other_parts(model, unplaced)}
        elsewhere |= {name for name in unplaced if _of_no_use(name, headers)}
        unplaced = [name for name in unplaced if name not in elsewhere]
    if unplaced:
        raise InputError(
            f"checkpoint {path}: the weights hold {unplaced[0]} ({len(unplaced)} such in all), for which the model has "
            f"no place: {_reason(model, unplaced[0], headers)}; weights and config.json do not belong together"
        )
    if info["mismatched_keys"]:
        raise misfit(path, *min(info["mismatched_keys"], key=lambda entry: str(entry[0])))


def misfit(path: Path, name: str, stored: Iterable[int], expected: Iterable[int]) -> InputError:
    """The error of a weight that has another shape than the configuration asks for."""
    return InputError(
        f"checkpoint {path}: {name} has shape {list(stored)}, config.json asks for {list(expected)}; "
        "weights and config.json do not belong together"
    )


def _ahead(config: Any, names: list[str]) -> list[str]:
    """Of layers behind the last one that guess tokens ahead, which no next-token distribution needs."""
    text = config.get_text_config()
    first, count = getattr(text, "num_hidden_layers", None), getattr(text, "num_nextn_predict_layers", None)
    if not isinstance(first, int) or not isinstance(count, int):
        return []
    found = ((name, _LAYER.search(name)) for name in names)
    return [name for name, layer in found if layer is not None and first <= int(layer[1]) < first + count]


def _of_no_use(name: str, headers: Headers) -> bool:
    """Whether no next-token distribution needs a value, by its name and shape."""
    shape = headers[name].shape if name in headers else (0,)
    is_mask = len(shape) == 4 and shape[:2] == (1, 1)
    computed = _COMPUTED.search(name) is not None and (not name.endswith("n.bias") or is_mask)
    return computed or _GUESSES.match(name) is not None or is_book_keeping(name)


def _other_parts(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Of what reads images or sounds, where the language model alone was loaded of one with several parts."""
    whole = next((getattr(transformers, str(name), None) for name in model.config.architectures or ()), None)
    if not isinstance(whole, type) or isinstance(model, whole) or not issubclass(whole, PreTrainedModel):
        return []
    with contextlib.suppress(Exception), quiet(), torch.device("meta"):  # another class may ask for another config
        made: Any = whole(model.config)
        language = {id(p) for part in (made.get_decoder(), made.get_output_embeddings()) for p in part.parameters()}
        others = {_bare(name) for name, parameter in made.named_parameters() if id(parameter) not in language}
        return [name for name in names if _bare(name) in others]
    return []


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _reason(model: PreTrainedModel, name: str, headers: Headers) -> str:
    """What of config.json has no place for a weight."""
    config = model.config
    text = config.get_text_config()
    layer, count = _LAYER.search(name), getattr(text, "num_hidden_layers", None)
    if layer is not None and isinstance(count, int) and int(layer[1]) >= count:
        return f"config.json says num_hidden_layers: {count}"
    if getattr(config, "quantization_config", None) is None and _is_packing(name, headers):
        return "config.json has no quantization_config, without which quantised weights are read as what they are not"
    field = next(_switches(model, name), None)
    if field is not None:
        return f"config.json says {field[0]}: {str(field[1]).lower()}"
    return f"config.json says model_type: {config.model_type}, a {type(model).__name__}"


def _is_packing(name: str, headers: Headers) -> bool:
    """Whether a value is a part of a quantised weight: by its name, or as the neighbour of one of 8 bits or less."""
    module, _, last = name.rpartition(".")
    beside = [header for other, header in headers.items() if other.rpartition(".")[0] == module]
    return (
        is_packing(name)
        or "scale" in last
        or "quantizer" in name
        or any(header.dtype not in BYTES for header in beside)
    )


def _switches(model: PreTrainedModel, name: str) -> Iterator[tuple[str, bool]]:
    """The fields that are true or false with which, the other way round, the model has a place for a weight."""
    config = model.config
    for field, value in sorted(config.get_text_config().to_dict().items()):
        if not isinstance(value, bool):
            continue
        with contextlib.suppress(Exception), quiet(), torch.device("meta"):  # not every combination is a model
            changed = type(config).from_dict(config.to_dict())
            setattr(changed.get_text_config(), field, not value)
            if name in type(model)(changed).state_dict():
                yield field, value


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "n_routed_experts",
)  # fmt: skip
_FAR = 16
"""By how much a size may be larger than the largest of the stored weights, which may be packed."""


_DEEPEST = 100_000
"""Layers; transformers makes a list of what each of them is, before anything else."""


def check_depth(path: Path, stated: Any) -> None:
    """Refuse a config.json of more layers than any model has.

    Raises:
        InputError: names the field.
    """
    parts = [stated, *stated.values()] if isinstance(stated, dict) else []
    for part in (one for one in parts if isinstance(one, dict)):
        for name, value in part.items():
            if "layer" in str(name) and isinstance(value, (int, float)) and value > _DEEPEST:
                raise InputError(f"{path / 'config.json'}: {name} is {value:,}; expected at most {_DEEPEST:,}")


def check_sizes(path: Path, config: Any, headers: Headers) -> None:
    """Refuse a configuration of another model before it takes the memory of that one.

    Args:
        config: as transformers reads it, with its defaults for what config.json leaves out.

    Raises:
        InputError: names the size.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    largest = max((size for header in headers.values() for size in header.shape), default=0)
    for name, most in (*((name, _FAR * largest) for name in _SIZES), ("num_hidden_layers", 4 * len(headers))):
        size = getattr(text, name, None)
        if isinstance(size, int) and headers and size > max(most, 256):
            raise InputError(
                f"checkpoint {path}: config.json gives or lacks {name}, which is {size:,} then, and no stored weight "
                "is near that; copy the config.json that was saved with these weights"
            )
