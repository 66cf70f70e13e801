"""States while they are computed: a spool that takes rollouts in any order and ends as a trace."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opd_probe.errors import OutputError
from opd_probe.trace.parquet import Array
from opd_probe.trace.schema import Column
from opd_probe.trace.table import Trace, write_trace


class TraceSpool:
    """Collects the states of rollouts in any order, in memory or on disk, and yields them in rollout order.

    The engine works through rollouts longest first; a trace lists them as they were given. Each rollout's
    rows have their place from the start, so a block is written once, and on disk an interrupted replay goes on
    where it stopped: ``done`` says which rollouts are whole, and ``answered`` of which a part of the columns is there.

    Args:
        counts: int [n_rollouts], the number of states of each rollout.
        columns: the state columns to hold.
        depth: K.
        directory: where to keep memory-mapped columns; None keeps them in memory.
        key: identifies the work (inputs and settings). A spool on disk with another key is started afresh.
        answers: whether columns of a rollout come in two parts, see :meth:`put_answer`.
    """

    def __init__(
        self,
        counts: Sequence[int] | Array,
        columns: Sequence[Column],
        depth: int,
        directory: Path | None = None,
        key: str = "",
        *,
        answers: bool = False,
    ) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
        self.columns = tuple(columns)
        self.directory = directory
        n_rollouts = len(self.offsets) - 1
        total = int(self.offsets[-1])
        resumed = directory is not None and _spool_key(directory) == key
        if directory is not None and not resumed:
            _start_directory(directory)
        mode = "r+" if resumed else "w+"
        self.arrays: dict[str, Array] = {}
        for column in self.columns:
            shape = (total, depth) if column.shape == "top" else (total,)
            self.arrays[column.name] = self._allocate(column.name, shape, column.dtype, mode)
        self.done = self._allocate("done", (n_rollouts,), "bool", mode)
        self.done[np.diff(self.offsets) == 0] = True
        self.answered = self._allocate("answered", (n_rollouts if answers else 0,), "bool", mode)
        if directory is not None and not resumed:
            (directory / "key").write_text(key)  # last: a spool without it was never whole

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: str, mode: str) -> Array:
        if self.directory is None or 0 in shape:
            return np.zeros(shape, dtype=dtype)
        path = self.directory / f"{name}.npy"
        if mode == "r+":
            return np.lib.format.open_memmap(path, mode="r+")
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)

    def put(self, rollout: int, values: Mapping[str, Array]) -> None:
        """Store the rows of one whole rollout."""
        rows = self._rows(rollout)
        for column in self.columns:
            self.arrays[column.name][rows] = values[column.name]
        self.done[rollout] = True

    def put_answer(self, rollout: int, values: Mapping[str, Array]) -> None:
        """Store some columns of one rollout, for :meth:`answer` to give back until the whole is put."""
        for name, column in values.items():
            self.arrays[name][self._rows(rollout)] = column
        self.answered[rollout] = True

    def put_answers(self, blocks: Iterable[Mapping[str, Array]]) -> None:
        """Store some columns of all rows, given in order, block by block; their top lists may be deeper."""
        start = 0
        for block in blocks:
            stop = start + len(block["rollout"])
            for name, column in block.items():
                if name in self.arrays:
                    held = self.arrays[name][start:stop]
                    held[:] = column[:, : held.shape[1]] if held.ndim == 2 else column
            start = stop
        self.answered[:] = True

    def answer(self, rollout: int, columns: Sequence[str]) -> dict[str, Array]:
        """Columns of one rollout as they were put."""
        return {name: np.array(self.arrays[name][self._rows(rollout)]) for name in columns}

    def _rows(self, rollout: int) -> slice:
        return slice(int(self.offsets[rollout]), int(self.offsets[rollout + 1]))

    def finish(self, rollouts: pa.Table, provenance: Mapping[str, Any], path: Path | None) -> Trace:
        """The finished trace: written to ``path``, or in memory when ``path`` is None. The spool is spent."""
        if not bool(self.done.all()):
            raise RuntimeError(f"{int((~self.done).sum())} rollouts were never replayed")
        names = [column.name for column in self.columns]
        if path is None:
            return Trace(rollouts, provenance, arrays=self.arrays)
        source = Trace(rollouts, provenance, arrays=self.arrays)
        trace = write_trace(path, source.blocks(names), names, rollouts, provenance)
        self.discard()
        return trace

    def discard(self) -> None:
        """Remove what the spool keeps on disk."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def _spool_key(directory: Path) -> str | None:
    key = directory / "key"
    return key.read_text() if key.is_file() else None


def _start_directory(directory: Path) -> None:
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"output {directory}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
