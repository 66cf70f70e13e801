"""Rows of JSONL and Parquet files, with the place of each for error messages; and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.atomic import whole_file
from opd_probe.errors import InputError, MissingError, OutputError
from opd_probe.output import output_path
from opd_probe.texts import check_ordinary, parse_json, read_json, within

Row = tuple[str, Mapping[str, Any]]
"""Where the row stands, and the row."""


def absent(value: Any) -> bool:
    """None, or the NaN, NA or NaT that data frames put where nothing is."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(value != value)


def read_rows(path: str | Path, what: str) -> Iterator[Row]:
    """Yield (place, row) for each row of a JSON, JSONL, Parquet or Arrow file, or sample of a torch file or
    of an archive of inspect_ai, by extension.

    A ``.json`` file that is one document is one row, or a row per entry when it is a list or a log of
    inspect_ai. A directory is a data set that Hugging Face's ``save_to_disk`` wrote.

    Raises:
        MissingError: no such file or directory.
        InputError: neither kind of file, broken, or empty. A broken JSON line is named.
    """
    path = Path(path)
    if path.is_dir():
        rows = _dataset_rows(path, what)
    elif not path.is_file():
        raise MissingError(f"{what} {path}: no such file")
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path, what)
    elif path.suffix == ".arrow":
        rows = _arrow_rows(path, what)
    elif path.suffix == ".pt":
        from opd_probe.rollouts.torch_rows import torch_rows

        rows = torch_rows(path, what)
    elif path.suffix == ".eval":
        from opd_probe.rollouts.archive_rows import archive_rows

        rows = archive_rows(path, what)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        rows = _document_rows(path, what) if path.suffix == ".json" and _is_document(path) else _json_rows(path, what)
    else:
        raise InputError(f"{what} {path}: expected a .jsonl or a .parquet file")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{what} {path}: the file is empty; expected one row per entry")


def _json_rows(path: Path, what: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as handle:
        try:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                place = f"{what} {path}, line {number}"
                try:
                    row = parse_json(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{place}: not valid JSON ({error}); mend or remove the line") from None
                yield place, _object(place, row, _may_hold_halves(line))
        except UnicodeDecodeError as error:
            raise InputError(f"{what} {path}: not UTF-8 text ({error.reason}); expected JSON lines") from None


def _is_document(path: Path) -> bool:
    """Whether the first line is no whole JSON value, or a list: then the file is one document."""
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        first = next((line for line in handle if line.strip()), "")
    try:
        return isinstance(parse_json(first), list)
    except (ValueError, RecursionError):
        return True


def _document_rows(path: Path, what: str) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path}: not valid JSON ({error}); mend the file") from None
    halves = _may_hold_halves(text)
    if isinstance(document, dict) and isinstance(document.get("samples"), list) and "eval" in document:
        header = {name: document.get(name) for name in ("eval", "plan")}  # a log of inspect_ai that is no archive
        document = [{**row, "header": header} if isinstance(row, dict) else row for row in document["samples"]]
    for number, row in enumerate(document if isinstance(document, list) else [document]):
        place = f"{what} {path}, entry {number}"
        yield place, _object(place, row, halves)


def _may_hold_halves(text: str) -> bool:
    """Whether JSON names characters by the halves that UTF-16 makes of them; a half alone is no text."""
    return re.search(r"\\u[dD][89a-fA-F]", text) is not None


def _object(place: str, row: Any, halves: bool) -> dict[str, Any]:
    """A row, which must be an object, and without ``halves`` that stand alone."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, got {type(row).__name__}")
    if not halves:
        return row
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InputError(f"{place}: holds {half}, half of a character; mend or remove the text") from None
    return row


def _parquet_rows(path: Path, what: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                batch.validate(full=True)
                for row in batch.to_pylist():
                    yield f"{what} {path}, row {number}", {name: _plain(value) for name, value in row.items()}
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:  # text that is not UTF-8 among them
        raise InputError(f"{what} {path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _arrow_rows(path: Path, what: str) -> Iterator[Row]:
    """Of an Arrow file, streamed as ``datasets`` writes it, or with a footer."""
    import pyarrow as pa

    try:
        check_ordinary(path)
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            number = 0
            for batch in batches:
                batch.validate(full=True)  # what is out of its bounds would otherwise be read as it is
                for row in batch.to_pylist():
                    yield f"{what} {path}, row {number}", {name: _plain(value) for name, value in row.items()}
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{what} {path}: not a whole Arrow file ({str(error).splitlines()[0]})") from None


def is_dataset(path: Path) -> bool:
    """Whether a directory is what Hugging Face's ``save_to_disk`` wrote: a data set, or several splits of one."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _dataset_rows(path: Path, what: str) -> Iterator[Row]:
    """Of a data set's shards in their order; of a set of one split, of that."""
    splits = [folder for folder in sorted(path.iterdir()) if (folder / "state.json").is_file()]
    if (path / "dataset_dict.json").is_file() and splits:
        if len(splits) > 1:
            names = ", ".join(folder.name for folder in splits)
            raise InputError(f"{what} {path}: holds the splits {names}; give the folder of one")
        path = splits[0]
    state = path / "state.json"
    if not state.is_file():
        raise MissingError(f"{what} {path}: is a directory; expected a file, or what datasets' save_to_disk wrote")
    try:
        shards = [str(entry["filename"]) for entry in read_json(state)["_data_files"]]
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{what} {state}: does not name the data files; save the data set again") from None
    for shard in shards:
        try:
            file = within(path, shard)
        except ValueError as error:
            raise InputError(f"{what} {state}: {error}; save the data set again") from None
        yield from _arrow_rows(file, what)


def _plain(value: Any) -> Any:
    """Chat messages and functions without the keys that only others of the column have, at every depth."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return [{name: _plain(_held(held)) for name, held in entry.items() if held is not None} for entry in value]
    return value


def _held(value: Any) -> Any:
    """An object without the keys that are null, and those of its objects."""
    if not isinstance(value, dict):
        return value
    return {name: _plain(_held(held)) for name, held in value.items() if held is not None}


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as JSONL or Parquet, by the extension; the file appears whole or not at all.

    Args:
        columns: the order of the columns; one that is null in every row is left out.

    Raises:
        InputError: another extension. OutputError: the file cannot be written.
    """
    path = output_path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"output {path}: expected a name that ends in .jsonl or .parquet")
    held = list(rows)
    used = [name for name in columns if any(row.get(name) is not None for row in held)]
    try:
        with whole_file(path) as temporary:
            if path.suffix == ".jsonl":
                with temporary.open("w", encoding="utf-8") as handle:
                    for row in held:
                        kept = {name: row[name] for name in used if row.get(name) is not None}
                        handle.write(json.dumps(kept, ensure_ascii=False) + "\n")
            else:
                import pyarrow as pa
                import pyarrow.parquet as pq

                try:
                    table = pa.table({name: [row.get(name) for row in held] for name in used})
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    reason = str(error).splitlines()[0]
                    raise InputError(f"output {path}: Parquet cannot hold these rows ({reason}); use .jsonl") from None
                # Opened here: of a path Arrow takes what stands before a colon for the name of a file system.
                with temporary.open("wb") as target:
                    pq.write_table(table, target, compression="zstd")
    except OSError as error:
        raise OutputError(
            f"output {path}: cannot be written ({error.strerror or error}); choose another place"
        ) from None
