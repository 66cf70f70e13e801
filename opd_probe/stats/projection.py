"""From hidden states to float32 logits over the shared vocabulary, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from opd_probe.stats.contents import contents
from opd_probe.stats.native import bf16_product, packed_weight
from opd_probe.stats.scratch import Scratch

_FLOAT32: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _kept(copies: WeakTensorKeyDictionary, make: Callable[[Tensor], Tensor | None], weight: Tensor) -> Tensor | None:
    """A copy of a matrix in another form, kept as long as the matrix lives: for the next replay with the same model,
    if its weights are then what they were."""
    now = contents(weight)
    if weight not in copies or copies[weight][0] != now:
        copies[weight] = None  # an old copy goes before there is a new one
        copies[weight] = now, make(weight)
    copy: Tensor | None = copies[weight][1]
    return copy


def as_float32(weight: Tensor) -> Tensor:
    """A matrix in float32: itself, or a copy that is kept as long as the matrix lives and is not changed."""
    if weight.dtype == torch.float32:
        return weight
    copy = _kept(_FLOAT32, Tensor.float, weight)
    assert copy is not None
    return copy


class OutputProjection:
    """A model's output layer, with the shared ids first and the others behind them.

    Args:
        weight: [W, d], any floating type. With d = 0 there is no product: what comes in are logits, [T, W].
        bias: [W] or None.
        shared_ids: the S shared ids, ascending.
        scale: multiplies the product (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``).
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2), or None.
        native: whether a native product may be built for bf16 weights on a CPU, which pays for long jobs.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        shared_ids: Sequence[int] | Tensor,
        scale: float = 1.0,
        softcap: float | None = None,
        *,
        native: bool = False,
    ) -> None:
        ids = torch.as_tensor(shared_ids, dtype=torch.int64, device=weight.device)
        self.shared = int(ids.numel())
        self.width = int(weight.shape[0])
        self.scale, self.softcap = scale, softcap
        self._on_cpu = weight.device.type == "cpu"
        self._order: Tensor | None = None
        if self.shared and int(ids[-1]) != self.shared - 1:
            others = torch.ones(self.width, dtype=torch.bool, device=weight.device)
            others[ids] = False
            order = torch.cat([ids, torch.nonzero(others).flatten()])
            self._order = order
            weight = weight[order]
            bias = None if bias is None else bias[order]
        self.bias = None if bias is None else bias.float()
        self._packed = _kept(_PACKED, packed_weight, weight) if native and weight.shape[1] else None
        self._float32: Tensor | None = None
        self.weight = weight

    @property
    def is_native(self) -> bool:
        """Whether bf16 hidden states go through the native product."""
        return self._packed is not None

    def logits(self, hidden: Tensor, scratch: Scratch, name: str) -> tuple[Tensor, Tensor]:
        """float32 logits of a chunk of hidden states [T, d]: over the shared ids [T, S], and over the rest.

        Both are views of one buffer of ``scratch`` that the next call under the same ``name`` overwrites.
        """
        out = scratch.take(name, (hidden.shape[0], self.width), torch.float32, hidden.device)
        if self.weight.shape[1] == 0:
            given = hidden if self._order is None else hidden.index_select(1, self._order)
            out.copy_(given)
            return out[:, : self.shared], out[:, self.shared :]
        narrow = self.weight.dtype == hidden.dtype == torch.bfloat16
        if self._packed is not None and narrow:
            bf16_product(hidden, self._packed, out)
        elif hidden.dtype == self.weight.dtype == torch.float32 or self._on_cpu:
            # torch's CPU product of bf16 matrices comes out in bf16, which ties at rank k. As bf16 factors of a product
            # of float32 matrices they lose nothing.
            self._float32 = as_float32(self.weight) if self._float32 is None else self._float32
            with _product_precision(hidden.device, "bf16" if narrow else "ieee"):
                torch.mm(hidden.float(), self._float32.t(), out=out)
        else:
            torch.mm(hidden.to(self.weight.dtype), self.weight.t(), out_dtype=torch.float32, out=out)
        if self.scale != 1.0:
            out.mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out[:, : self.shared], out[:, self.shared :]


@contextmanager
def _product_precision(device: torch.device, precision: str) -> Iterator[None]:
    """How products of float32 matrices are taken, whatever the process has set: ``ieee``, or on a CPU that has bf16
    units ``bf16``, with float32 sums and results."""
    backend: Any = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


def mass_outside(rest: Tensor, log_partition: Tensor, temperature: float = 1.0) -> Tensor:
    """The probability outside the shared ids, before renormalisation: float32 [T], 0 where there is no rest.

    Args:
        rest: [T, R] logits of the ids that are not shared.
        log_partition: [T] log sum exp of the logits of the shared ids, at the same temperature.
    """
    if rest.shape[1] == 0:
        return torch.zeros_like(log_partition, dtype=torch.float32)
    # Below their maximum, which is apart in float64: beside a logit of 100 float32 has five digits left.
    top = rest.float().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    outside = torch.logsumexp((rest.float() - top) / temperature, dim=-1) + top.squeeze(1).double() / temperature
    return torch.sigmoid(outside - log_partition).float()
