"""Quantised checkpoints: what they say of themselves, and what transformers leaves to do when it has read one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.guards import brief, one_line, quiet
from opd_probe.models.placement import input_device

_STATED = "stated_quantisation"
"""The attribute of a model that keeps what its checkpoint said."""

_BITS = ("bits", "num_bits", "w_bit", "weight_bits", "nbits", "wbits")
_NAMED_BITS = re.compile(r"(?:int|uint|float|fp|nf|q|w)_?(\d)(?!\d)", re.IGNORECASE)
"""The bits in names such as ``int4_weight_only``, ``nf4``, ``Int8WeightOnlyConfig``, ``mxfp4``, ``Q4_K``."""

_WEIGHT_TYPE = re.compile(r"weight_dtype\W+(?:_data\W+)?(?:torch\.)?[a-z]+(\d)")
_WEIGHT_BITS = re.compile(r"(?:int|float|fp)_?(\d)_?weight", re.IGNORECASE)
"""Those of the weights, where a name has those of activations too: ``Int8DynamicActivationInt4WeightConfig``."""


def quantisation_of_model(model: Any) -> dict[str, Any] | None:
    """Of a model as it was loaded: weights that were unpacked in full leave nothing in its configuration."""
    if not hasattr(model, _STATED):
        return quantisation_of(model.config)
    found: dict[str, Any] | None = getattr(model, _STATED)
    return found


def keep_stated(model: Any, stated: dict[str, Any] | None) -> None:
    """Let a model remember what its checkpoint said."""
    setattr(model, _STATED, stated)


def quantisation_of(config: Any) -> dict[str, Any] | None:
    """What a configuration says of its weights: ``{"method": "gptq", "bits": 4}``; None: they are what they are.

    Bits are those of most weights, None where they are not stated.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        stated = getattr(config.get_text_config(), "quantization_config", None)
    if stated is None:
        return None
    values: Mapping[str, Any] = stated if isinstance(stated, Mapping) else stated.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method", "unknown")))
    return {"method": method, "bits": _bits(values, method)}


def _bits(values: Mapping[str, Any], method: str) -> int | None:
    for bits, name in ((4, "load_in_4bit"), (8, "load_in_8bit")):
        if values.get(name):
            return bits
    groups = values.get("config_groups")
    if isinstance(groups, Mapping):
        values = next((group["weights"] for group in groups.values() if group.get("weights")), values)
    for name in _BITS:
        if isinstance(values.get(name), int):
            return int(values[name])
    said = " ".join(str(values.get(name, "")) for name in ("quant_type", "weights", "quant_algo", "fmt"))
    weights = _WEIGHT_TYPE.search(said) or _WEIGHT_BITS.search(said)  # before those of activations
    named = weights or _NAMED_BITS.search(method) or _NAMED_BITS.search(said)
    return None if named is None else int(named[1])


@contextmanager
def reading(path: Path, config: Any) -> Iterator[None]:
    """While the block reads a checkpoint, what stops it is one line; of a quantised one with its method, and with the
    package or the device that is missing.

    Raises:
        InputError: transformers does not know the method, or cannot read it here.
    """
    found = quantisation_of(config)
    if found is None:
        with one_line(f"checkpoint {path}"):
            yield
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = found["method"]
    if not any(method == known.split("_")[0] or method == known for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise InputError(
            f"checkpoint {path}: is quantised with {method}, which transformers does not read (quantization_config in "
            "config.json); expected another method, or the model before it was quantised"
        )
    try:
        yield
    except InputError as error:
        if str(error).startswith("checkpoint"):
            raise
        raise InputError(f"checkpoint {path}: is quantised with {method}; {error}") from None
    except (OpdProbeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each method's package has errors of its own
        raise InputError(
            f"checkpoint {path}: is quantised with {method}, which cannot be read here ({type(error).__name__}: "
            f"{brief(error)})"
        ) from None


def settle(model: Any, config: Any, dtype: torch.dtype | None) -> None:
    """Finish what loading a quantised model leaves open, in place.

    Some methods unpack their weights in the first call of the whole model alone. Some leave weights that they unpacked
    in another type than that which was asked for, so that the model holds two and cannot be run.

    Args:
        config: the configuration that was read.
        dtype: that was asked for; a method that keeps its own goes on doing so.

    Raises:
        InputError: packed weights that are computed in another type alone.
    """
    keep_stated(model, quantisation_of(config))
    ids = torch.zeros(1, 2, dtype=torch.int64, device=input_device(model))
    with torch.no_grad(), quiet():
        try:
            model(input_ids=ids)
        except RuntimeError:  # two types
            model.to(dtype or _widest(model))
            _run(model, ids, config)
        if dtype is not None and any(_is_plain(p) and p.dtype != dtype for p in model.parameters()):
            _cast(model, dtype)


def _run(model: Any, ids: torch.Tensor, config: Any) -> None:
    try:
        model(input_ids=ids)
    except RuntimeError as error:
        kept = getattr(config.get_text_config(), "dtype", None)
        advice = f"; its packed weights may be computed in {kept} alone: leave --dtype out" if kept is not None else ""
        raise InputError(f"its weights are of several types ({brief(error)}){advice}") from None


def _widest(model: Any) -> torch.dtype:
    types = [p.dtype for p in model.parameters() if _is_plain(p)]
    return max(types, key=lambda kind: kind.itemsize, default=torch.float32)


def _is_plain(value: torch.Tensor) -> bool:
    return type(value) is torch.nn.Parameter and value.is_floating_point() and value.element_size() > 1


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Into the type that was asked for where the method lets it be done."""
    try:
        model.to(dtype)
    except (ValueError, NotImplementedError):  # packed weights keep the type that they are computed in
        return
