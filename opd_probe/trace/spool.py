"""States while they are computed: a spool that takes rollouts in any order and ends as a trace."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opd_probe.atomic import reserve
from opd_probe.errors import OutputError, warn_in_passing
from opd_probe.texts import check_ordinary
from opd_probe.trace.parquet import Array
from opd_probe.trace.schema import Column
from opd_probe.trace.table import Trace, write_trace

ROOM = "room"
"""The file of a spool that holds the place of the trace on the disk until it is written."""


class TraceSpool:
    """Collects the states of rollouts in any order, in memory or on disk, and yields them in rollout order.

    The engine works through rollouts longest first; a trace lists them as they were given. Each rollout's
    rows have their place from the start, so a block is written once, and on disk an interrupted replay goes on
    where it stopped: ``done`` says which rollouts are whole, and ``answered`` of which a part of the columns is there.
    A digest is kept of each, and what does not agree with it when work goes on counts as not there.

    Args:
        counts: int [n_rollouts], the number of states of each rollout.
        columns: the state columns to hold.
        depth: K.
        directory: where to keep memory-mapped columns; None keeps them in memory. Their room on the disk is taken at
            once, and that of the trace beside it.
        key: identifies the work (inputs and settings). A spool on disk with another key is started afresh.
        answers: the columns of a rollout that come before the others, see :meth:`put_answer`.

    Raises:
        OutputError: the directory cannot be written, or its disk has no room.
    """

    def __init__(
        self,
        counts: Sequence[int] | Array,
        columns: Sequence[Column],
        depth: int,
        directory: Path | None = None,
        key: str = "",
        *,
        answers: Sequence[str] = (),
    ) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
        self.columns, self.directory = tuple(columns), directory
        self._answers = tuple(answers)
        n_rollouts, total = len(self.offsets) - 1, int(self.offsets[-1])
        flags = n_rollouts if answers else 0
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            column.name: ((total, depth) if column.shape == "top" else (total,), column.dtype) for column in columns
        }
        shapes |= {
            "done": ((n_rollouts,), "bool"),
            "done_digests": ((n_rollouts,), "uint32"),
            "answered": ((flags,), "bool"),
            "answered_digests": ((flags,), "uint32"),
        }
        held, resumed = _held(directory, shapes, key)
        self.arrays: dict[str, Array] = {column.name: held[column.name] for column in self.columns}
        self.done, self._done_digests = held["done"], held["done_digests"]
        self.answered, self._answered_digests = held["answered"], held["answered_digests"]
        if resumed:
            self._check()
        self.done[np.diff(self.offsets) == 0] = True

    def _check(self) -> None:
        """Forget what does not agree with its digest."""
        names = [column.name for column in self.columns]
        lost = set()
        pairs = ((self.done, self._done_digests, names), (self.answered, self._answered_digests, self._answers))
        for flags, digests, columns in pairs:
            for rollout in np.flatnonzero(flags.view(np.uint8)).tolist():
                flags[rollout] = self._digest(rollout, columns) == digests[rollout]
                if not flags[rollout]:
                    lost.add(rollout)
        if lost:
            warn_in_passing(f"{self.directory}: {len(lost)} finished rollouts in it are damaged; they are done again")

    def _digest(self, rollout: int, columns: Sequence[str]) -> int:
        digest = 0
        for name in columns:
            digest = zlib.crc32(self.arrays[name][self._rows(rollout)].data, digest)
        return digest

    def put(self, rollout: int, values: Mapping[str, Array]) -> None:
        """Store the rows of one whole rollout."""
        rows = self._rows(rollout)
        for column in self.columns:
            self.arrays[column.name][rows] = values[column.name]
        self._done_digests[rollout] = self._digest(rollout, [column.name for column in self.columns])
        self.done[rollout] = True

    def put_answer(self, rollout: int, values: Mapping[str, Array]) -> None:
        """Store the columns of one rollout that come first, for :meth:`answer` to give back until the whole is put."""
        for name in self._answers:
            self.arrays[name][self._rows(rollout)] = values[name]
        self._answered_digests[rollout] = self._digest(rollout, self._answers)
        self.answered[rollout] = True

    def put_answers(self, rollouts: Sequence[int], blocks: Iterable[Mapping[str, Array]]) -> None:
        """Store such columns of some rollouts, whose rows come one after another, block by block; their top lists may
        be deeper."""
        self._fill(rollouts, self._answers, blocks)
        for rollout in rollouts:
            self._answered_digests[rollout] = self._digest(rollout, self._answers)
            self.answered[rollout] = True

    def take(self, rollouts: Sequence[int], blocks: Iterable[Mapping[str, Array]]) -> None:
        """Store all columns of some whole rollouts, as :meth:`put_answers` a part of them."""
        names = [column.name for column in self.columns]
        self._fill(rollouts, names, blocks)
        for rollout in rollouts:
            self._done_digests[rollout] = self._digest(rollout, names)
            self.done[rollout] = True
            if len(self.answered):
                self._answered_digests[rollout] = self._digest(rollout, self._answers)
                self.answered[rollout] = True

    def _fill(self, rollouts: Sequence[int], names: Sequence[str], blocks: Iterable[Mapping[str, Array]]) -> None:
        rows, start = self.rows(rollouts), 0
        for block in blocks:
            stop = start + len(block["rollout"])
            for name in names:
                held = self.arrays[name]
                held[rows[start:stop]] = block[name][:, : held.shape[1]] if held.ndim == 2 else block[name]
            start = stop

    def answer(self, rollout: int, columns: Sequence[str]) -> dict[str, Array]:
        """Columns of one rollout as they were put."""
        return {name: np.array(self.arrays[name][self._rows(rollout)]) for name in columns}

    def _rows(self, rollout: int) -> slice:
        return slice(int(self.offsets[rollout]), int(self.offsets[rollout + 1]))

    def rows(self, rollouts: Sequence[int]) -> Array:
        """The rows of some rollouts, one after another."""
        return np.concatenate([np.arange(*self.offsets[[one, one + 1]]) for one in rollouts])

    def part(self, rollouts: Sequence[int], table: pa.Table, provenance: Mapping[str, Any]) -> Trace:
        """Some rollouts as a trace that reads the spool.

        Args:
            rollouts: ascending. table: the rollout table of all.
        """
        return Trace(table.take(list(rollouts)), provenance, arrays=self.arrays, rows=self.rows(rollouts))

    def finish(
        self,
        rollouts: pa.Table,
        provenance: Mapping[str, Any],
        path: Path | None,
        taken: Sequence[int] | None = None,
    ) -> Trace:
        """The finished trace: written to ``path``, or in memory when ``path`` is None. The spool is spent.

        Args:
            rollouts: the rollout table of all.
            taken: the rollouts that the trace holds, ascending; None: all.
        """
        names = [column.name for column in self.columns]
        wanted = slice(None) if taken is None else list(taken)
        if not bool(self.done[wanted].all()):
            raise RuntimeError(f"{int((~self.done[wanted]).sum())} rollouts were never replayed")
        if taken is None:
            source = Trace(rollouts, provenance, arrays=self.arrays)
        else:
            source = self.part(taken, rollouts, provenance)
        rollouts = source.rollouts
        if path is None:
            if taken is None:
                return source
            rows = self.rows(taken)
            return Trace(rollouts, provenance, arrays={name: self.arrays[name][rows] for name in names})
        if self.directory is not None:
            with suppress(OSError):  # then there is less room, which writing may find
                (self.directory / ROOM).unlink(missing_ok=True)
        trace = write_trace(path, source.blocks(names), names, rollouts, provenance)
        self.discard()
        return trace

    def discard(self) -> None:
        """Remove what the spool keeps on disk."""
        if self.directory is not None:
            _remove(self.directory)


def _remove(directory: Path) -> None:
    """What is there, a spool or something else in its place; what cannot be removed is found when it is made anew."""
    with suppress(OSError):
        shutil.rmtree(directory) if directory.is_dir() and not directory.is_symlink() else directory.unlink()


def _held(
    directory: Path | None, shapes: Mapping[str, tuple[tuple[int, ...], str]], key: str
) -> tuple[dict[str, Array], bool]:
    """The arrays of a spool, and whether they go on with work under the same key."""
    if directory is None:
        return {name: np.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}, False
    size = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    with _room_for(directory, size):
        if _same_key(directory, key):
            try:
                found = {name: _mapped(directory / f"{name}.npy", *one, new=False) for name, one in shapes.items()}
            except (OSError, ValueError) as error:
                warn_in_passing(f"{directory}: unfinished work in it is damaged ({error}); it is started afresh")
            else:
                _take_room(directory, size)
                return found, True
    _remove(directory)
    try:
        with _room_for(directory, size):
            directory.mkdir(parents=True)
            fresh = {name: _mapped(directory / f"{name}.npy", *one, new=True) for name, one in shapes.items()}
            _take_room(directory, size)
            (directory / "key").write_bytes(key.encode())  # last: a spool without it was never whole
    except BaseException:
        _remove(directory)
        raise
    return fresh, False


@contextmanager
def _room_for(directory: Path, size: int) -> Iterator[None]:
    """What goes wrong on the disk, in one line.

    Raises:
        OutputError: in place of what was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"output {directory.parent}: cannot be written, or has no room for the {2 * size / 1e6:,.1f} MB of a trace "
            f"and the work on it ({error.strerror or error}); free space or choose another place with --out"
        ) from None


def _same_key(directory: Path, key: str) -> bool:
    try:
        check_ordinary(directory / "key")
        return (directory / "key").read_bytes() == key.encode()
    except OSError:
        return False


def _take_room(directory: Path, size: int) -> None:
    """Hold as much of the disk as the trace will take at most, so that no finished work finds it full."""
    (directory / ROOM).unlink(missing_ok=True)
    with (directory / ROOM).open("wb") as handle:
        reserve(handle, size)


def _mapped(path: Path, shape: tuple[int, ...], dtype: str, *, new: bool) -> Array:
    """An array in a .npy file, whose room on the disk is there: a write to a map never finds the disk full.

    Raises:
        ValueError: an old file is not of that shape, type and size. OSError: it is not there, or there is no room.
    """
    header = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    content, size = header.getvalue(), prod(shape) * np.dtype(dtype).itemsize
    if not new:
        check_ordinary(path)
    with path.open("wb" if new else "rb") as handle:
        if new:
            handle.write(content)
            handle.flush()
            reserve(handle, len(content) + size)
        elif handle.read(len(content)) != content or os.fstat(handle.fileno()).st_size != len(content) + size:
            raise ValueError(f"{path.name} is not of the expected size and shape")
    if size == 0:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r+", offset=len(content), shape=shape)
