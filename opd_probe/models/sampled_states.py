"""What a student's output layer read at every token that was drawn, kept while the student is sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.errors import warn_in_passing


class SampledStates:
    """Hidden states by rollout, in a file without a name, in the order in which they were read.

    A disk that refuses them costs the states and not the samples: then none is kept, and a line says so.

    Args:
        place: the directory whose disk takes them; None: the system's for temporary files.
        room: bytes that they may take.
    """

    def __init__(self, place: Path | None, room: int) -> None:
        self._place, self._room = place, room
        self._file: IO[bytes] | None = None
        self._rows: dict[str, list[int]] = {}
        self._count, self._width = 0, 0
        self._dtype = torch.float32
        self._refused = False

    def add(self, rollouts: Sequence[str], hidden: Tensor) -> None:
        """Keep what the output layer reads, [B, d], before it gives one more token of each of these rollouts."""
        if self._refused:
            return
        values = hidden.cpu().contiguous()
        try:
            if self._file is None:
                self._file = TemporaryFile(dir=self._place)  # noqa: SIM115
                self._dtype, self._width = values.dtype, values.shape[1]
            if (self._count + len(values)) * values.shape[1] * values.element_size() > self._room:
                self._refuse(f"take more than {self._room / 1e9:.1f} GB, half of what was free")
                return
            self._file.write(values.view(torch.uint8).numpy().data)
        except OSError as error:
            self._refuse(f"cannot be written ({error.strerror})")
            return
        for row, name in enumerate(rollouts, self._count):
            self._rows.setdefault(name, []).append(row)
        self._count += len(values)

    def count(self, rollout: str) -> int:
        """How many states of a rollout are kept."""
        return len(self._rows.get(rollout, ()))

    def of(self, rollout: str) -> Tensor:
        """The states of a rollout, [n, d], from its first drawn token on."""
        return torch.from_numpy(self._bytes()[self._rows[rollout]]).view(self._dtype)

    def _bytes(self) -> NDArray[np.uint8]:
        assert self._file is not None
        self._file.flush()
        shape = self._count, self._width * self._dtype.itemsize
        mapped: Any = np.memmap(self._file, dtype=np.uint8, mode="r", shape=shape)
        return np.asarray(mapped)

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._rows.clear()
        if self._file is not None:
            self._file.close()
        self._file = None
        place = self._place or "temporary files"
        warn_in_passing(f"hidden states of sampling: {why} on the disk of {place}; the student is replayed")
