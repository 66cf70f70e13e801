"""Buffers that are used again from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers that live from chunk to chunk: fresh large tensors cost a page fault for every 4 KB."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor; what it held before under this name is gone."""
        held = self._buffers.get(name)
        needed = shape[0] * shape[1]
        if held is None or held.numel() < needed or held.dtype != dtype or held.device != device:
            held = torch.empty(needed, dtype=dtype, device=device)
            self._buffers[name] = held
        return held[:needed].view(shape)
