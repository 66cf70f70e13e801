"""The output layer of a model as one matrix, whatever wraps or packs it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from opd_probe.errors import is_refused_allocation
from opd_probe.models.placement import weights_at_hand

_VIEWS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

_ROWS = 256
"""Unit vectors that go through a layer at once."""


def head_matrix(head: Any, width: int | None) -> tuple[Tensor, Tensor | None] | None:
    """Weight [W, d] and bias [W] of an output layer; None where it is no layer of the kind.

    Of a plain layer these are its own tensors. What peft puts around a layer is run on the unit vectors instead:
    whatever kind of adapter it is, a linear map is known by what it makes of them. Whether it is linear is for the
    caller to check, against the model's own logits. A layer that keeps its weight packed rounds in a way of its own,
    and has no matrix.

    Args:
        width: d, of the hidden states; None: unknown, so that only a plain layer can be read.
    """
    head = _chosen(head)
    values = [*head.parameters(), *head.buffers()]
    if _is_plain(getattr(head, "weight", None)) and not any(True for _ in head.children()):
        with weights_at_hand(head):
            weight, bias = head.weight, getattr(head, "bias", None)
            return _view(weight), None if bias is None else bias.detach()
    if width is None or not values or not all(_is_plain(value) for value in head.parameters()):
        return None
    try:
        return _mapped(head, values, width)
    except Exception as error:  # a layer that reads something else; the model's own logits are there for it
        if is_refused_allocation(error):
            raise
        return None


def _view(weight: Tensor) -> Tensor:
    """A weight without its gradient, the same object each time: what is made of it once, such as a copy in another
    type, is then found by it again."""
    now, known = weight.detach(), _VIEWS.get(weight)
    if known is None or _place(known) != _place(now):  # its data was replaced by other data
        known = _VIEWS[weight] = now
    view: Tensor = known
    return view


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _chosen(head: Any) -> Any:
    """The layer that peft stored whole, in place of the wrapper that holds it and the one it replaces."""
    copies, active = getattr(head, "modules_to_save", None), list(getattr(head, "active_adapters", []))
    if not isinstance(copies, nn.ModuleDict) or getattr(head, "disable_adapters", False) or len(active) != 1:
        return head
    return _chosen(copies[active[0]]) if active[0] in copies else head


def _is_plain(weight: Any) -> bool:
    """Whether a weight is what it is multiplied by: neither packed nor of 8 bits with a scale beside it."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1


def _mapped(head: Any, values: list[Tensor], width: int) -> tuple[Tensor, Tensor | None]:
    """What a layer makes of the unit vectors, and of zero."""
    types = [torch.float32, *(value.dtype for value in values if value.is_floating_point())]
    dtype = max(types, key=lambda kind: kind.itemsize)  # 16 bits would round a unit vector's small change away
    head = copy.deepcopy(head).to(dtype)
    unit = torch.eye(width, dtype=dtype, device=values[0].device)
    shift: Tensor = head(torch.zeros_like(unit[None, :1]))[0, 0]
    rows = [head(piece[None])[0] - shift for piece in unit.split(_ROWS)]
    return torch.cat(rows).t().contiguous(), shift if bool(shift.any()) else None
