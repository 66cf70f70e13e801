"""The trace in memory or on disk, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd_probe.errors import MissingError, OpdProbeError, TraceError
from opd_probe.output import output_path
from opd_probe.texts import parse_json
from opd_probe.trace.digest import agrees
from opd_probe.trace.parquet import (
    PROVENANCE_KEY,
    ROLLOUTS_KEY,
    VERSION_KEY,
    Array,
    decode_rollouts,
    write_file,
)
from opd_probe.trace.schema import (
    FORMAT_VERSION,
    PROVENANCE,
    ROLLOUT_COLUMNS,
    ROLLOUT_ID,
    STATE_COLUMN,
    STATE_COLUMNS,
    STOPPED,
    Column,
)


class Trace:
    """The states of one (student, teacher, rollouts) triple.

    Rows are grouped by rollout, rollouts in the order in which they were given, positions ascending. The
    columns are those of :data:`opd_probe.trace.schema.STATE_COLUMNS`.

    Attributes:
        provenance: both models' identity, tokenizer hash, temperature, dtype, attention implementation, K,
            software versions and format version; JSON types only.
        rollouts: the rollout table (:data:`opd_probe.trace.schema.ROLLOUT_COLUMNS`), skipped rollouts included.
    """

    def __init__(
        self,
        rollouts: pa.Table,
        provenance: Mapping[str, Any],
        *,
        arrays: Mapping[str, Array] | None = None,
        path: Path | None = None,
        rows: Array | None = None,
    ) -> None:
        if (arrays is None) == (path is None):
            raise TypeError("a trace lives either in arrays or in a file")
        self.rollouts = rollouts
        self.provenance = dict(provenance)
        self._arrays = dict(arrays) if arrays is not None else None
        self._path = path
        self._columns: tuple[str, ...] | None = None
        self._rows = rows  # of the arrays, where the trace is a part of them
        counts = np.asarray(rollouts.column("n_states").to_numpy(zero_copy_only=False), dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return self.n_states

    def __repr__(self) -> str:
        where = f" at {self._path}" if self._path else ""
        return f"<Trace of {self.n_states} states, {self.rollouts.num_rows} rollouts, K = {self.K}{where}>"

    @property
    def n_states(self) -> int:
        """The number of rows."""
        return int(self._offsets[-1])

    @property
    def K(self) -> int:
        """The depth of the stored top lists."""
        return int(self.provenance["K"])

    @property
    def vocabulary_size(self) -> int:
        """The number of ids that both models share; every distribution is normalised over them."""
        return int(self.provenance["vocabulary"]["size"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses the trace should know, as it was said when the trace was made."""
        return tuple(str(text) for text in self.provenance.get("warnings") or ())

    @property
    def stopped(self) -> Mapping[str, Any] | None:
        """Of a replay that stopped once its intervals were narrow enough: how far it came and what was asked, see
        ``docs/formats.md``; None: the trace is whole."""
        found: Mapping[str, Any] | None = self.provenance.get("stopped")
        return found

    @property
    def path(self) -> Path | None:
        """The file that the trace is read from, or None for a trace in memory."""
        return self._path

    @property
    def columns(self) -> tuple[str, ...]:
        """The numeric state columns that this trace has."""
        if self._arrays is not None:
            return tuple(self._arrays)
        if self._columns is None:  # asked for before each pass over the file
            assert self._path is not None
            with _reading(self._path) as file:
                self._columns = tuple(name for name in file.schema_arrow.names if name != ROLLOUT_ID.name)
        return self._columns

    @property
    def rollout_offsets(self) -> Array:
        """int64 [n_rollouts + 1]: rollout i owns the rows ``offsets[i]:offsets[i + 1]``."""
        return self._offsets

    def rollout_index(self, start: int = 0, stop: int | None = None) -> Array:
        """int64 [stop - start]: for each row, the row of the rollout table that it belongs to."""
        stop = self.n_states if stop is None else stop
        return np.searchsorted(self._offsets, np.arange(start, stop), side="right") - 1

    def column(self, name: str) -> Array:
        """A whole column: [n_states], or [n_states, K] for a top list.

        Raises:
            TraceError: the trace has no such column.
        """
        parts = [block[name] for block in self.blocks([name])]
        return np.concatenate(parts) if parts else self._empty(name)

    def blocks(self, columns: Sequence[str], size: int = 65_536) -> Iterator[dict[str, Array]]:
        """Yield consecutive rows as dictionaries of arrays, at most ``size`` rows each, in file order.

        Every block also has ``rollout``, the row's index into the rollout table. Memory is bounded by the block.

        Raises:
            TraceError: the trace has no such column.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise TraceError(
                f"trace {self._path or 'in memory'}: no column {missing[0]!r}; it has {', '.join(self.columns)}"
            )
        start = 0
        for block in self._raw_blocks(list(columns), size):
            length = len(next(iter(block.values()))) if block else 0
            block["rollout"] = self.rollout_index(start, start + length)
            start += length
            yield block
        if columns and start != self.n_states:
            raise TraceError(f"trace {self._path}: {start} of {self.n_states} states in it; run the replay again")

    def _raw_blocks(self, columns: list[str], size: int) -> Iterator[dict[str, Array]]:
        if self._arrays is not None:
            for start in range(0, self.n_states, size):
                block = slice(start, start + size)
                at = block if self._rows is None else self._rows[block]
                yield {name: self._arrays[name][at] for name in columns}
            return
        assert self._path is not None
        with _reading(self._path) as file:
            # One row group at a time: asked for all of them, the reader fetches ahead as much as the whole file.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns):
                    batch.validate()
                    yield {name: _to_numpy(batch.column(name), STATE_COLUMN[name], self.K) for name in columns}

    def _empty(self, name: str) -> Array:
        column = STATE_COLUMN[name]
        return np.empty((0, self.K) if column.shape == "top" else (0,), dtype=column.dtype)

    def save(self, path: str | Path) -> Trace:
        """Write the trace to a Parquet file, atomically, and return the trace that reads it.

        Raises:
            OutputError: it cannot be written, or the path is the address of something that is no disk.
        """
        blocks = self.blocks(self.columns)
        return write_trace(output_path(path), blocks, self.columns, self.rollouts, self.provenance)


def _to_numpy(values: pa.Array, column: Column, depth: int) -> Array:
    if column.shape == "top":
        return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(-1, depth)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def rollout_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rollout table from one mapping per rollout; absent keys are null, an optional column of nulls is left out."""
    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    return pa.table(
        {
            column.name: pa.array([row.get(column.name) for row in rows], type=kinds[column.dtype])
            for column in ROLLOUT_COLUMNS
            if not (column.optional and rows and all(row.get(column.name) is None for row in rows))
        }
    )


def write_trace(
    path: Path,
    blocks: Iterable[Mapping[str, Array]],
    columns: Sequence[str],
    rollouts: pa.Table,
    provenance: Mapping[str, Any],
) -> Trace:
    """Stream blocks of rows into a trace file that appears whole or not at all, and open it.

    Each block needs ``rollout`` (indices into the rollout table) beside ``columns``.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, blocks, columns, rollouts, provenance)
    return read_trace(path, verify=False)


def read_trace(path: str | Path, *, verify: bool = True) -> Trace:
    """Open a trace file. Columns are read when asked for.

    Args:
        verify: first compare every byte with the digest that the file holds; early traces hold none.

    Raises:
        MissingError: there is no such file.
        TraceError: the file is damaged, is not a whole trace, or has a format version that this release does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"trace {path}: no such file; give the path of a trace that opd-probe wrote")
    if verify:
        _verify(path)
    with _reading(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
        metadata = schema.metadata or {}
        if VERSION_KEY not in metadata and not any(key.startswith(b"opd_probe.") for key in metadata):
            raise TraceError(f"trace {path}: a Parquet file, but not one of opd-probe's traces")
        version = metadata[VERSION_KEY].decode(errors="replace")
        if version != str(FORMAT_VERSION):
            raise TraceError(
                f"trace {path}: format version {version}, this release reads version {FORMAT_VERSION}; "
                "replay again, or use the release that wrote it"
            )
        provenance = parse_json(metadata[PROVENANCE_KEY])
        trace = Trace(decode_rollouts(metadata[ROLLOUTS_KEY]), provenance, path=path)
        _check_shapes(trace, schema, n_rows)
    return trace


def is_sealed(path: Path) -> bool:
    """Whether a trace holds a digest over its bytes, as all but early ones do.

    Raises:
        TraceError: it cannot be read.
    """
    return _agrees(path) is not None


def _agrees(path: Path) -> bool | None:
    try:
        with path.open("rb") as handle:
            return agrees(handle)
    except OSError as error:
        raise TraceError(f"trace {path}: cannot be read ({error.strerror})") from None


def _verify(path: Path) -> None:
    if _agrees(path) is False:
        raise TraceError(
            f"trace {path}: damaged, its bytes do not agree with the digest that was stored with them; "
            "run the replay again"
        )


@contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file; whatever a damaged one raises while it is read becomes one line.

    Raises:
        TraceError: it is not whole, or it is gone.
    """
    try:
        # Opened here: of a path Arrow takes what stands before a colon for the name of a file system.
        with path.open("rb") as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            yield file
    except OpdProbeError:
        raise
    except FileNotFoundError:
        raise TraceError(f"trace {path}: it is no longer there; run the replay again") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        detail = next(iter(str(error).splitlines()), type(error).__name__)
        raise TraceError(f"trace {path}: not a whole Parquet file ({detail}); run the replay again") from None


def _check_shapes(trace: Trace, schema: pa.Schema, n_rows: int) -> None:
    """Refuse a file whose parts do not fit each other; without a digest it may be damaged anywhere.

    Raises:
        ValueError: says where.
    """
    for column in ROLLOUT_COLUMNS:
        if column.name in trace.rollouts.column_names:
            kind = str(trace.rollouts.schema.field(column.name).type)
            if kind != {"float64": "double"}.get(column.dtype, column.dtype):
                raise ValueError(f"column {column.name!r} of its rollout table is of the type {kind}")
        elif not column.optional:
            raise ValueError(f"no column {column.name!r} in its rollout table")
    _check_provenance(trace.provenance)
    if trace.n_states != n_rows or (np.diff(trace.rollout_offsets) < 0).any():
        raise ValueError(f"{n_rows} rows, of {trace.n_states} states in its rollout table")
    if trace.K < 1 or trace.vocabulary_size < 1:
        raise ValueError(f"K = {trace.K} of {trace.vocabulary_size} ids")
    for column in STATE_COLUMNS:
        if column.name not in schema.names:
            if not column.optional:
                raise ValueError(f"no column {column.name!r}")
            continue
        kind = schema.field(column.name).type
        if column.shape == "top":
            if not pa.types.is_fixed_size_list(kind) or kind.list_size != trace.K:
                raise ValueError(f"{kind} in {column.name!r}, K is {trace.K}")
            kind = kind.value_type
        if column is not ROLLOUT_ID and str(kind) != {"float32": "float"}.get(column.dtype, column.dtype):
            raise ValueError(f"column {column.name!r} is of the type {kind}")


def _check_provenance(provenance: Mapping[str, Any]) -> None:
    """Refuse provenance of which something that is read is of another type.

    Raises:
        ValueError: says what.
    """
    for path, types in PROVENANCE.items():
        value: Any = provenance
        for key in path.split("."):
            value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        good = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if value is not _ABSENT and not good:
            raise ValueError(f"{path} of its provenance is {type(value).__name__}")
    stopped = provenance.get("stopped")
    if stopped is not None:
        lacking = [name for name in STOPPED if name not in stopped]
        if lacking:
            raise ValueError(f"stopped of its provenance has no {lacking[0]}")
        if not 0 < stopped["level"] < 1:
            raise ValueError(f"stopped.level of its provenance is {stopped['level']}")
    special = (provenance.get("vocabulary") or {}).get("special_ids") or ()
    if not all(isinstance(token, int) for token in special):
        raise ValueError("vocabulary.special_ids of its provenance are no token ids")


_ABSENT = object()
