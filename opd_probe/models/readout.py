"""What turns a model's last hidden states into logits: its output layer, found by measuring, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd_probe.models.heads import head_matrix

_RAMP = 256.0
"""The measured range of logits, on both sides of 0."""

_ALIKE = 1e-5
"""Relative differences below this are rounding, for a map that is measured in float32."""


@dataclass
class OutputLayer:
    """logits = softcap · tanh((scale · hidden · weightᵀ + bias) / softcap), without the last step when it is None.

    ``weight`` is [W, d], ``bias`` [W] or None. With d = 0 there is no product: what comes in are the model's own
    logits, [..., W].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether the model's own logits come in, so that nothing is left to do."""
        return self.weight.shape[1] == 0

    def logits(self, hidden: Tensor) -> Tensor:
        """The obvious float32 product, for checks: [..., d] -> [..., W]."""
        if self.is_given:
            return hidden.float()
        logits = hidden.float() @ self.weight.float().t() * self.scale
        if self.bias is not None:
            logits = logits + self.bias.float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def columns(self, count: int) -> OutputLayer:
        """The same layer for about ``count`` ids that are spread over the vocabulary."""
        step = max(1, -(-self.weight.shape[0] // count))
        bias = None if self.bias is None else self.bias[::step]
        return OutputLayer(self.weight[::step], bias, self.scale, self.softcap)


def given_logits(width: int, like: Tensor) -> OutputLayer:
    """The layer of a model whose own logits are used, of ``width`` ids, on the device and in the type of ``like``."""
    return OutputLayer(like.new_empty((width, 0)))


@torch.inference_mode()
def stated_layer(model: Any) -> OutputLayer | None:
    """The output layer as a model's configuration states it; None when it has no weight."""
    head = output_module(model)
    config = model.config.get_text_config()
    found = None if head is None else head_matrix(head, getattr(config, "hidden_size", None))
    if found is None:
        return None
    weight, bias = found
    # Cohere multiplies its logits, Granite divides them.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputLayer(weight, bias, scale, softcap)


def output_module(model: Any) -> Any:
    """The module that a model calls its output layer, or None."""
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


@contextmanager
def _replaced(head: Any, ramp: Tensor) -> Iterator[None]:
    """While the block runs, the output layer of a model gives the ramp, whatever goes into it."""

    def replace(module: Any, args: Any, output: Tensor) -> Tensor:
        del module, args
        return ramp.to(output.device).expand(output.shape).clone()  # which may be changed in place

    handle = head.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def measured_layer(model: Any, stated: OutputLayer, run: Callable[[], Tensor]) -> OutputLayer | None:
    """The stated output layer with the scale and the soft cap that are measured: what a model makes of known numbers
    that its output layer is made to give. None where it makes something else of them, such as a mask.

    Args:
        run: runs the model on whatever sequence, and gives its logits [1, T, W].
    """
    width = int(stated.weight.shape[0])
    ramp = torch.linspace(-_RAMP, _RAMP, width, dtype=torch.float32)
    with _replaced(output_module(model), ramp):
        made = run()[0, -1].double().cpu()
    if made.shape != ramp.shape or not bool(torch.isfinite(made).all()):
        return None
    known = ramp.double()
    numbers = _numbers(model.config.get_text_config().to_dict())
    middle = int(known.abs().argmin()) + max(1, width // 512)  # where a soft cap bends nothing yet
    candidates: list[tuple[float, float | None]] = [(_snapped(float(made[-1] / known[-1]), numbers), None)]
    for softcap in numbers:
        if 0 < softcap < 1e4 and abs(float(made[-1]) / softcap) <= 1 + _ALIKE:
            ratio = min(1 - 1e-12, abs(float(made[middle])) / softcap)
            bent = softcap * float(torch.atanh(torch.tensor(ratio, dtype=torch.float64)))
            candidates.append((_snapped(bent / abs(float(known[middle])), numbers), softcap))
    for scale, cap in candidates:
        ours = known * scale
        ours = ours if cap is None else cap * torch.tanh(ours / cap)
        if float((ours - made).abs().max()) <= _ALIKE * max(1e-9, float(made.abs().max())):
            # A layer's own bias is added before what the model does to its outputs, ours after the scale.
            bias = stated.bias if stated.bias is None or scale == 1.0 else stated.bias * scale
            return OutputLayer(stated.weight, bias, scale, cap)
    return None


def _numbers(config: dict[str, Any]) -> list[float]:
    """The numbers of a configuration, each once."""
    found: dict[float, None] = {}
    for value in config.values():
        if isinstance(value, dict):
            found |= dict.fromkeys(_numbers(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[float(value)] = None
    return list(found)


def _snapped(scale: float, numbers: list[float]) -> float:
    """A measured scale as the configuration has it, which is exact: one of its numbers, or one over it."""
    exact = [1.0, *numbers, *(1 / number for number in numbers if number)]
    near = min(exact, key=lambda number: abs(number - scale))
    return near if abs(near - scale) <= _ALIKE * abs(scale) else scale
