"""Whether the header of a GGUF file says no more than the file holds, before a library counts as far as it says."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type: integers, floats, truth values."""

_STRING, _ARRAY = 8, 9
_DEEPEST = 4
"""Arrays of arrays: none are known."""

_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8
"""Bytes of an entry of a tensor: its name's length, dimensions, one size, type and place."""


def check_header(path: Path) -> None:
    """Walk the values that a header announces.

    Raises:
        ValueError: they go on beyond the end of the file, or are of no known type. OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("does not begin with GGUF")
        version = file.read(4)
        # A version whose lower half is empty is one of the other byte order.
        order = ">" if len(version) == 4 and struct.unpack("<I", version)[0] & 0xFFFF == 0 else "<"
        walk = _Walk(file, size, order)
        tensors, values = walk.number(8), walk.number(8)
        walk.has(values * (8 + 4 + 1))
        for _ in range(values):
            walk.skip(walk.number(8))
            walk.value(walk.number(4), 0)
        walk.has(tensors * _LEAST_TENSOR)


class _Walk:
    def __init__(self, file: BinaryIO, size: int, order: str) -> None:
        self.file, self.size, self.order = file, size, order

    def number(self, width: int) -> int:
        """An unsigned integer of 4 or 8 bytes."""
        content = self.file.read(width)
        if len(content) < width:
            raise ValueError("ends within its header")
        return int(struct.unpack(self.order + ("Q" if width == 8 else "I"), content)[0])

    def has(self, count: int) -> None:
        """That so many bytes are still to come."""
        if count > self.size - self.file.tell():
            raise ValueError("its header announces more than the file holds")

    def skip(self, count: int) -> None:
        self.has(count)
        self.file.seek(count, os.SEEK_CUR)

    def value(self, kind: int, depth: int) -> None:
        """Pass over a value."""
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.skip(self.number(8))
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number(4), self.number(8)
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
                return
            self.has(count * 8)
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            raise ValueError(f"holds a value of type {kind}")
