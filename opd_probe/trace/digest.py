"""A digest over all bytes of a trace file, kept inside the file where no reader of Parquet looks: before the footer.

The checksums of Parquet's pages cover neither their headers nor the footer, where the provenance and the rollout table
are. This one covers every byte but its own, and is compared before anything of the file is interpreted.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"PAR1"
_END = 8
"""Bytes behind the footer: its length, little-endian in four bytes, and the magic."""
_BLOCK = 1 << 20
_RECORD = re.compile(rb"opd-probe sha256 ([0-9a-f]{64})\n")
_RECORD_SIZE = len("opd-probe sha256 ") + 64 + 1


def add_digest(file: BinaryIO) -> None:
    """Put the digest of a whole Parquet file, open for reading and writing, between its last page and its footer."""
    start = _footer_start(file)
    assert start is not None
    digest = _sha256(file, ())
    file.seek(start)
    rest = file.read()
    file.seek(start)
    file.write(f"opd-probe sha256 {digest}\n".encode() + rest)


def agrees(file: BinaryIO) -> bool | None:
    """Whether a file's bytes agree with the digest that is kept in it; None: none is kept, as in early traces."""
    found = _record(file)
    return None if found is None else _sha256(file, range(found[0], found[0] + _RECORD_SIZE)) == found[1]


def kept_digest(path: Path) -> str | None:
    """The digest that a file keeps, not compared with its bytes; None: none is kept, as in early traces.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = _record(file)
    return None if found is None else found[1]


def _record(file: BinaryIO) -> tuple[int, str] | None:
    """Where the digest in a file begins, and what it is."""
    start = _footer_start(file)
    if start is None or start < _RECORD_SIZE:
        return None
    file.seek(start - _RECORD_SIZE)
    record = _RECORD.fullmatch(file.read(_RECORD_SIZE))
    return None if record is None else (start - _RECORD_SIZE, record[1].decode())


def _footer_start(file: BinaryIO) -> int | None:
    """Where the footer begins; None: the file does not end as Parquet does."""
    size = file.seek(0, os.SEEK_END)
    if size < _END + len(_MAGIC):
        return None
    file.seek(size - _END)
    end = file.read(_END)
    start = size - _END - int.from_bytes(end[:4], "little")
    return start if end[4:] == _MAGIC and start >= len(_MAGIC) else None


def _sha256(file: BinaryIO, left_out: range | tuple[()]) -> str:
    """Of all bytes but a range of them."""
    digest = hashlib.sha256()
    file.seek(0)
    place = 0
    while True:
        ahead = left_out[0] - place if left_out and place < left_out[0] else _BLOCK
        block = file.read(min(ahead, _BLOCK))
        if not block:
            return digest.hexdigest()
        digest.update(block)
        place += len(block)
        if left_out and place == left_out[0]:
            place = file.seek(left_out[-1] + 1)
