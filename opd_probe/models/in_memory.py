"""What a model in memory is by content: a digest of its weights, taken anew only when they changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd_probe.errors import InputError
from opd_probe.stats.contents import contents

_KNOWN: WeakKeyDictionary[PreTrainedModel, tuple[bytes, str]] = WeakKeyDictionary()


def config_json(config: Any) -> str:
    """The configuration without where it came from."""
    values = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(values, sort_keys=True, default=str)


def state_digest(model: PreTrainedModel) -> str:
    """sha256 over the configuration, and names, shapes, types and bytes of the parameters, of a model in memory.

    Raises:
        InputError: a weight is offloaded.
    """
    tensors = _tensors(model)
    now = _summary(model, tensors)
    known = _KNOWN.get(model)
    if known is None or known[0] != now:
        known = _KNOWN[model] = now, _digest(model, tensors)
    return known[1]


def written(model: Any) -> int:
    """How often torch saw the parameters of a model change in place."""
    return sum(parameter._version for parameter in model.parameters() if not parameter.is_inference())


def _tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    tensors = sorted(model.state_dict().items())
    for name, tensor in tensors:
        if tensor.is_meta:
            raise InputError(
                f"model {type(model).__name__}: {name} is offloaded, so that it cannot be compared with that of a "
                "stored trace; give the model's path, or keep the trace in memory with out=None"
            )
    return tensors


def _stated(model: PreTrainedModel) -> list[bytes]:
    """What no parameter says: the configuration, and the scales of adapters."""
    said = [config_json(model.config).encode()]
    for name, adapter in sorted((getattr(model, "peft_config", None) or {}).items()):
        stated = {key: sorted(value) if isinstance(value, set) else value for key, value in adapter.to_dict().items()}
        said.append((name + json.dumps(stated, sort_keys=True, default=str)).encode())
    return said


def _digest(model: PreTrainedModel, tensors: list[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(b"".join(_stated(model)))
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _summary(model: PreTrainedModel, tensors: list[tuple[str, Tensor]]) -> bytes:
    """Another one after every change that matters to the digest, in a fraction of its time."""
    digest = hashlib.sha256(b"".join(_stated(model)))
    seen: dict[tuple[Any, ...], bytes] = {}
    for name, tensor in tensors:
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device  # tied weights lie there
        if place not in seen:
            seen[place] = contents(tensor)
        digest.update(name.encode() + seen[place])
    return digest.digest()
