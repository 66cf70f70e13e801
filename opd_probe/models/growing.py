"""Keys and values with room for more: what a cache holds is written once, and not copied with every token and row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS = 64
"""Tokens for which a buffer has room when it is made."""


class GrowingLayer(DynamicLayer):
    """A layer of a cache whose keys and values, [B, heads, T, d], are views of buffers with more rows and columns.

    A token goes behind the last column. Rows that come in go behind the last row, ended by the same column; what is
    left of them is never looked at. Rows that leave are overwritten by the last ones.

    Args:
        layer: whose keys and values it goes on with.
    """

    keys: Any
    values: Any

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.keys, self.values = layer.keys, layer.values
        self._buffers: list[Tensor] | None = None
        self._start = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values with those of new tokens behind them."""
        del args, kwargs
        rows, _, length, _ = self.keys.shape
        new = key_states.shape[-2]
        if self._buffers is None or self._start + length + new > self._buffers[0].shape[-2]:
            self._take_room(rows, 0, length + new)
        assert self._buffers is not None
        end = self._start + length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, end : end + new] = states
        return self._look(rows, length + new)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep some rows, or repeat them; cheap where those that do not stay where they are come from behind."""
        rows = beam_idx.tolist()
        moved = [(row, source) for row, source in enumerate(rows) if row != source]
        length = self.keys.shape[-2]
        if self._buffers is None or any(source < len(rows) for _, source in moved):
            self._buffers = None
            super().reorder_cache(beam_idx)
            return
        columns = slice(self._start, self._start + length)
        for buffer in self._buffers:
            for row, source in moved:
                buffer[row, :, columns] = buffer[source, :, columns]
        self._look(len(rows), length)

    def join(self, other: Any) -> None:
        """Take the rows of another layer in behind the own ones."""
        (rows, _, length, _), theirs = self.keys.shape, (other.keys, other.values)
        more, _, their_length, _ = other.keys.shape
        width = max(length, their_length)
        buffers = self._buffers
        if buffers is None or rows + more > len(buffers[0]) or self._start + length < width:
            self._take_room(rows + more, width - length, width)
        assert self._buffers is not None
        end = self._start + length
        for buffer, states in zip(self._buffers, theirs, strict=True):
            buffer[rows : rows + more, :, end - their_length : end] = states
        self._start = end - width
        self._look(rows + more, width)

    def trim(self, columns: int) -> None:
        """Let go of columns on the left."""
        rows, _, length, _ = self.keys.shape
        if self._buffers is None:
            self.keys, self.values = (states[..., columns:, :] for states in (self.keys, self.values))
            return
        self._start += columns
        self._look(rows, length - columns)

    def _take_room(self, rows: int, left: int, width: int) -> None:
        """Move to buffers of so many rows, with so many columns on the left of the present ones and room for ``width``
        and more. They begin as zeros: what is masked counts for nothing only where it is a number."""
        (held, _, length, _), before = self.keys.shape, (self.keys, self.values)
        self._start, self._buffers = left, []
        for states in before:
            buffer = states.new_zeros((rows, states.shape[1], width + COLUMNS, states.shape[-1]))
            buffer[:held, :, left : left + length] = states
            self._buffers.append(buffer)
        self._look(held, length)

    def _look(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        self.keys, self.values = (b[:rows, :, self._start : self._start + length] for b in self._buffers)
        return self.keys, self.values


def let_grow(cache: Any) -> None:
    """Have the plain layers of a cache grow in place; others, as those of windows and states, stay as they are."""
    if not isinstance(cache, DynamicCache):
        return
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and isinstance(layer.keys, torch.Tensor) and layer.keys.dim() == 4:
            cache.layers[number] = GrowingLayer(layer)
