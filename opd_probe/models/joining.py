"""What a model keeps of the tokens that it has read, for sequences that were read apart and go on together."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from opd_probe.models.bodies import Past
from opd_probe.models.growing import GrowingLayer

_KEPT = ("keys", "values")
"""What layers of a cache keep of every token, [B, heads, T, d]."""


def joined(one: Past, other: Past) -> Past:
    """One past of all rows, those of ``other`` behind; the shorter is padded on the left. Both are spent.

    Raises:
        RuntimeError: this kind of cache cannot be joined.
    """
    if one.caching != other.caching or one.values.keys() != other.values.keys():
        raise RuntimeError("two caches of different kinds")
    both = Past(one.caching)
    both.values = {name: _joined(value, other.values[name]) for name, value in one.values.items()}
    both.length = max(one.length, other.length)
    return both


def joined_mask(one: tuple[Past, Tensor | None, int], other: tuple[Past, Tensor | None, int], device: Any) -> Tensor:
    """The mask of all rows of two pasts, [B, T], those of the other behind; the shorter is padded on the left.

    Args:
        one, other: a past, its mask or None where nothing is padded, and its rows.
    """
    width = max(past.length for past, _, _ in (one, other))
    masks = []
    for past, mask, rows in (one, other):
        mask = torch.ones(rows, past.length, dtype=torch.int64, device=device) if mask is None else mask
        masks.append(pad(mask, (width - past.length, 0)))
    return torch.cat(masks)


def copied(past: Past) -> Past:
    """A past of its own that begins with the same."""
    copy = Past(past.caching)
    copy.values, copy.length = deepcopy(past.values), past.length
    return copy


def trim(past: Past, columns: int) -> bool:
    """Let go of columns on the left in which every row is padded; False, and nothing is done, where that cannot be."""
    caches = list(past.values.values())
    if not caches or not all(isinstance(cache, Cache) for cache in caches):
        return False
    layers = [layer for cache in caches for layer in getattr(cache, "layers", [None])]
    if not all(isinstance(layer, CacheLayerMixin) and _trimmable(layer, past.length) for layer in layers):
        return False
    width = past.length - columns
    for layer in layers:
        if isinstance(layer, GrowingLayer):
            layer.trim(columns)
            continue
        for name in _KEPT:
            setattr(layer, name, getattr(layer, name)[..., -width:, :])
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = width
    past.length = width
    return True


def _trimmable(layer: Any, length: int) -> bool:
    """A layer that keeps keys and values alone, of all tokens or, as it counts them, of a window."""
    others = [value for name, value in vars(layer).items() if name not in _KEPT and isinstance(value, Tensor)]
    if any(value.dim() for value in others) or not all(isinstance(getattr(layer, name), Tensor) for name in _KEPT):
        return False
    return bool(getattr(layer, "cumulative_length", layer.keys.shape[-2]) == length)


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _joined_tensors(one, other)
    if isinstance(one, GrowingLayer) and isinstance(other, DynamicLayer):
        one.join(other)
        return one
    if type(one) is not type(other):
        raise RuntimeError(f"a {type(one).__name__} beside a {type(other).__name__}")
    if one is None or isinstance(one, (bool, str, float, torch.dtype, torch.device)):
        if one != other:
            raise RuntimeError(f"{one} beside {other}")
        return one
    if isinstance(one, int):
        return max(one, other)
    if isinstance(one, dict) and one.keys() == other.keys():
        return {name: _joined(value, other[name]) for name, value in one.items()}
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return type(one)([_joined(*pair) for pair in zip(one, other, strict=True)])
    if isinstance(one, (Cache, CacheLayerMixin)) or type(one).__module__.startswith("transformers.models."):
        for name, value in vars(one).items():
            if not callable(value):
                setattr(one, name, _joined(value, vars(other)[name]))
        return one
    raise RuntimeError(f"no way to join a {type(one).__name__}")


def _joined_tensors(one: Tensor, other: Tensor) -> Tensor:
    if one.dim() == 0:
        return one
    if one.numel() == 0 or other.numel() == 0:
        return other if one.numel() == 0 else one
    if one.shape[1:] != other.shape[1:]:
        width = max(one.shape[-2], other.shape[-2])
        one, other = (pad(values, (0, 0, width - values.shape[-2], 0)) for values in (one, other))
    return torch.cat([one, other])
