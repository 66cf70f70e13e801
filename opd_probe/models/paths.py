"""Which ways of calling a model are exact: tried on the model itself, once for each model object.

What every way is held against is the model's own forward of one short sequence alone. The cheapest way that agrees is
taken; what no short sequence can show (a window or a piece that is longer than it) the sweep of all architectures
shows, on models whose configuration makes them short.
"""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch

from opd_probe.models.bodies import body_type, own_logits
from opd_probe.models.readout import OutputLayer, given_logits, stated_layer
from opd_probe.models.trials import Paths, Trial

_KNOWN: WeakKeyDictionary[Any, tuple[str, Paths]] = WeakKeyDictionary()


def paths_of(model: Any, name: str) -> tuple[Paths, OutputLayer]:
    """The exact paths of a model, and its output layer. A model object that was tried before is not tried again,
    unless its configuration or its modules changed.

    Raises:
        InputError: it is no causal language model, says something else each time, or cannot be run.
        OutOfMemoryError: there is no room for a short sequence.
    """
    shape = _shape_of(model)
    known = _KNOWN.get(model)
    if known is not None and known[0] == shape:
        layer = _layer_of(model, known[1])
        if layer is not None:
            return known[1], layer
    trial = Trial(model, name)
    paths, layer = trial.paths()
    if trial.finite:
        _KNOWN[model] = shape, paths
    return paths, layer


def _layer_of(model: Any, paths: Paths) -> OutputLayer | None:
    """The output layer of a model whose paths are known, with its weights of today."""
    stated = stated_layer(model)
    if paths.scale is None:
        ids = torch.zeros(1, 1, dtype=torch.int64)
        if stated is not None:
            return given_logits(int(stated.weight.shape[0]), stated.weight) if paths.kind == "own logits" else None
        logits = own_logits(model, ids)
        return given_logits(int(logits.shape[-1]), logits)
    if stated is None:
        return None
    bias = stated.bias
    if bias is not None and paths.scale not in (1.0, stated.scale):
        bias = bias * paths.scale
    return OutputLayer(stated.weight, bias, paths.scale, paths.softcap)


def _shape_of(model: Any) -> str:
    """What of a model object decides its paths: its configuration, and its modules and adapters by name and kind."""
    digest = hashlib.sha256(repr(model.config.to_dict()).encode())
    for place, module in model.named_modules():
        adapters = getattr(module, "active_adapters", ())
        active = "" if callable(adapters) else str(adapters)
        off = getattr(module, "disable_adapters", "")
        digest.update(f"{place} {type(module).__name__} {active} {'' if callable(off) else off}".encode())
    digest.update(f"{getattr(model.config, '_attn_implementation', '')} {body_type(model)}".encode())
    return digest.hexdigest()
