"""Files of records as wandb and swanlab write them: LevelDB's framing, with a protocol buffer in each record.

The framing (LevelDB's ``log_format.md``): after 7 bytes of header blocks of 32 KiB, filled by pieces of a checksum,
a length and a type (1 a whole record, 2, 3, 4 its first, middle and last piece). The fields that are read have had
their numbers since the formats are there, and those of a protocol buffer do not change; so that neither package, nor
the package of protocol buffers, is needed.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from opd_probe.errors import warn

HEADER, BLOCK = 7, 32_768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

Fields = dict[int, list[bytes | int]]
"""What a message holds by field number: bytes of text, messages and numbers of fixed length; whole numbers."""


def records(path: Path) -> Iterator[bytes]:
    """The records of a file. One that is cut off at its end is left out with a warning, as of a run that goes on.

    Raises:
        ValueError: something else than a record before the end, or a checksum that does not agree.
    """
    content = path.read_bytes()
    at, record, open_ = HEADER, b"", False
    while at < len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        piece = content[at + HEADER : at + HEADER + _length(content, at)]
        whole = len(content) >= at + HEADER and len(piece) == _length(content, at)
        if not whole or not any(content[at:]):  # zeros: room that was taken and not written
            open_ = True
            break
        checksum, _, kind = struct.unpack_from("<IHB", content, at)
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or open_ != (kind in (_MIDDLE, _LAST)):
            raise ValueError(f"no record at byte {at}")
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"the record at byte {at} has changed since it was written")
        record, open_ = record + piece, kind in (_FIRST, _MIDDLE)
        if not open_:
            yield record
            record = b""
        at += HEADER + len(piece)
    if open_:
        warn(f"training log {path}: the last record is cut off; read without it")


def _length(content: bytes, at: int) -> int:
    return int.from_bytes(content[at + 4 : at + 6], "little")


def fields(message: bytes) -> Fields:
    """What a message of a protocol buffer holds.

    Raises:
        ValueError: it is none.
    """
    found: Fields = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            found[key >> 3].append(value)
            continue
        if kind == 2:
            length, at = _number(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"no protocol buffer in a record (wire type {kind})")
        if at + length > len(message):
            raise ValueError("a protocol buffer that ends early")
        found[key >> 3].append(message[at : at + length])
        at += length
    return found


def message_in(held: Fields, number: int) -> Fields | None:
    """The message in a field; None where it is not set."""
    value = held.get(number, [None])[-1]
    return fields(value) if isinstance(value, bytes) else None


def text_in(held: Fields, number: int) -> str:
    """The text in a field; "" where it is not set."""
    value = held.get(number, [b""])[-1]
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def whole_in(held: Fields, number: int) -> int:
    """The signed number in a field; 0 where it is not set, as the format has it."""
    value = held.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no whole number")
    return value - (1 << 64) if value >> 63 else value


def double_in(held: Fields, number: int) -> float:
    """The double in a field; 0 where it is not set."""
    value = held.get(number, [bytes(8)])[-1]
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError(f"field {number} is no double")
    return float(struct.unpack("<d", value)[0])


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a protocol buffer that ends early")
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
