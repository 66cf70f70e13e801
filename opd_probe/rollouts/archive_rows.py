"""Samples of an archive that inspect_ai's ``.eval`` is: a zip whose members are compressed by Zstandard (method 93)."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.texts import parse_json

ZSTANDARD = 93
"""The method's number in a zip file; the standard library knows it from Python 3.14 on."""

_LOCAL = 30
"""Bytes of a member's own header before its name."""
_NOT_OURS = (RecursionError, NotImplementedError)
"""Of what a damaged file may ask for: depth without end, a version of the format that there is not."""

_LARGEST = 2**31
"""Bytes of one sample."""


def archive_rows(path: Path, what: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, sample) for each ``samples/….json``, in the archive's order, with the archive's ``header``.

    Raises:
        InputError: broken, or an archive of something else.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = {member.filename: member for member in archive.infolist()}
            start = names.get("header.json") or names.get("_journal/start.json")  # the latter of a run that goes on
            samples = [member for name, member in names.items() if name.startswith("samples/")]
            if start is None:
                raise InputError(f"{what} {path}: no header.json in the archive; expected a log of inspect_ai")
            header = _document(file, start)
            for member in samples:
                yield f"{what} {path}, {member.filename}", {**_document(file, member), "header": header}
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, zlib.error, *_NOT_OURS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} {path}: not a whole archive ({reason}); copy it again") from None


def _document(file: Any, member: zipfile.ZipInfo) -> dict[str, Any]:
    content = parse_json(_bytes(file, member))
    if not isinstance(content, dict):
        raise ValueError(f"{member.filename} holds {type(content).__name__}; expected an object")
    return content


def _bytes(file: Any, member: zipfile.ZipInfo) -> bytes:
    """A member's content, checked against its checksum."""
    import pyarrow as pa

    if member.file_size > _LARGEST or member.flag_bits & 1:
        raise ValueError(f"{member.filename} is {'encrypted' if member.flag_bits & 1 else 'beyond 2 GiB'}")
    file.seek(member.header_offset)
    local = file.read(_LOCAL)
    if local[:4] != b"PK\x03\x04":
        raise ValueError(f"no member at byte {member.header_offset}")
    name, extra = struct.unpack_from("<HH", local, 26)
    file.seek(name + extra, 1)
    stored = file.read(member.compress_size)
    if member.compress_type == zipfile.ZIP_STORED:
        content = stored
    elif member.compress_type == zipfile.ZIP_DEFLATED:
        content = zlib.decompress(stored, wbits=-zlib.MAX_WBITS)
    elif member.compress_type == ZSTANDARD:
        with pa.CompressedInputStream(pa.BufferReader(stored), "zstd") as stream:
            content = stream.read(member.file_size + 1)
    else:
        raise ValueError(f"{member.filename} is compressed by method {member.compress_type}")
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError(f"{member.filename} has changed since it was written")
    return bytes(content)
