"""A trace file: Parquet, with the format version, the provenance and the rollout table in its footer."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_probe.atomic import whole_file
from opd_probe.errors import OutputError
from opd_probe.trace.digest import add_digest
from opd_probe.trace.schema import FORMAT_VERSION, ROLLOUT_ID, STATE_COLUMN

Array = NDArray[Any]

VERSION_KEY = b"opd_probe.format_version"
PROVENANCE_KEY = b"opd_probe.provenance"
ROLLOUTS_KEY = b"opd_probe.rollouts"

ROW_GROUP = 65_536
_ARROW_TYPES: dict[str, pa.DataType] = {"int32": pa.int32(), "float32": pa.float32()}


def encode_rollouts(table: pa.Table) -> bytes:
    """The rollout table as text for the Parquet footer: a compressed Arrow stream in base64."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue().to_pybytes())


def decode_rollouts(data: bytes) -> pa.Table:
    """The inverse of :func:`encode_rollouts`."""
    table = pa.ipc.open_stream(base64.b64decode(data)).read_all()
    table.validate(full=True)  # what is out of its bounds would otherwise be read as it is
    return table


def write_file(
    path: Path,
    blocks: Iterable[Mapping[str, Array]],
    columns: Sequence[str],
    rollouts: pa.Table,
    provenance: Mapping[str, Any],
) -> None:
    """Stream blocks of rows into a Parquet file that appears whole or not at all.

    Each block needs ``rollout`` (indices into the rollout table) beside ``columns``.

    Raises:
        OutputError: the file cannot be written.
    """
    schema = _parquet_schema(columns, rollouts, provenance)
    ids = rollouts.column("rollout_id").combine_chunks()
    try:
        # Opened here: of a path Arrow takes what stands before a colon for the name of a file system.
        with whole_file(path) as temporary, temporary.open("w+b") as handle:
            with pq.ParquetWriter(
                handle,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[ROLLOUT_ID.name],
                column_encoding=_encodings(columns),
                write_statistics=True,
                write_page_checksum=True,
            ) as writer:
                for block in blocks:
                    writer.write_batch(_record_batch(block, columns, ids, schema), row_group_size=ROW_GROUP)
            add_digest(handle)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise OutputError(
            f"trace {path}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from None


def _encodings(columns: Sequence[str]) -> dict[str, str]:
    """Bytes of equal significance side by side compress better."""
    leaf = {name: f"{name}.list.element" if STATE_COLUMN[name].shape == "top" else name for name in columns}
    return {leaf[name]: "BYTE_STREAM_SPLIT" for name in columns}


def _parquet_schema(columns: Sequence[str], rollouts: pa.Table, provenance: Mapping[str, Any]) -> pa.Schema:
    depth = int(provenance["K"])
    fields = [pa.field(ROLLOUT_ID.name, pa.dictionary(pa.int32(), pa.string()))]
    for name in columns:
        column = STATE_COLUMN[name]
        kind = _ARROW_TYPES[column.dtype]
        # Not nullable: a missing value is NaN, and Parquet then stores no definition levels.
        item = pa.field("element", kind, nullable=False)
        fields.append(pa.field(name, pa.list_(item, depth) if column.shape == "top" else kind, nullable=False))
    metadata = {
        VERSION_KEY: str(FORMAT_VERSION).encode(),
        PROVENANCE_KEY: json.dumps(provenance, sort_keys=True).encode(),
        ROLLOUTS_KEY: encode_rollouts(rollouts),
    }
    return pa.schema(fields, metadata=metadata)


def _record_batch(
    block: Mapping[str, Array], columns: Sequence[str], ids: pa.Array, schema: pa.Schema
) -> pa.RecordBatch:
    used, codes = np.unique(block["rollout"], return_inverse=True)
    arrays: list[pa.Array] = [
        pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), ids.take(pa.array(used)))
    ]
    for name in columns:
        field = schema.field(name)
        values = np.ascontiguousarray(block[name])
        if STATE_COLUMN[name].shape == "top":
            flat = pa.array(values.reshape(-1), type=field.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        else:
            arrays.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
