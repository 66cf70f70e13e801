"""Digests of large files, remembered between processes for as long as the files are what they were."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from opd_probe.errors import OutputError
from opd_probe.output import write_bytes
from opd_probe.texts import read_json

FILE = ".digests.json"
SMALL = 1 << 20
"""Bytes up to which a file is read whole each time, which takes no longer than asking."""

_SAMPLES = 64
_BLOCK = 1 << 12
_SETTLED = 2.0
"""Seconds since its last change after which a file's digest is kept: a change in the same tick of its clock would not
show."""

_active: ContextVar[_Memory | None] = ContextVar("digests", default=None)


class _Memory:
    """What ``FILE`` in a directory holds: by path, what told a file from another, and its digest."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.changed = False
        self.known: dict[str, list[object]] = {}
        try:
            known = read_json(self.path)
            self.known = {name: entry for name, entry in known.items() if _is_entry(entry)}
        except (OSError, ValueError, AttributeError):
            return

    def digest(self, file: Path) -> bytes:
        state = file.stat()
        about = [state.st_size, state.st_mtime_ns, state.st_ino, _sampled(file, state.st_size)]
        found = self.known.get(str(file))
        if found is not None and found[:4] == about:
            return bytes.fromhex(str(found[4]))
        digest = _whole(file)
        if time.time() - state.st_mtime > _SETTLED and file.stat().st_mtime_ns == state.st_mtime_ns:
            self.known[str(file)] = [*about, digest.hex()]
            self.changed = True
        return digest


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 5 and re.fullmatch("[0-9a-f]{64}", str(entry[4])) is not None


@contextmanager
def remembering(directory: Path) -> Iterator[None]:
    """Within the block, digests are looked up in a directory and kept there.

    A file counts as unchanged while its path, size, time of change and inode are the same and so are blocks of it,
    spread over its length: weights that were overwritten in place under their old time are noticed. Where nothing can
    be written nothing is kept.
    """
    memory = _Memory(directory)
    token = _active.set(memory)
    try:
        yield
    finally:
        _active.reset(token)
        if memory.changed and directory.is_dir():
            content = {name: entry for name, entry in list(memory.known.items()) if Path(name).exists()}
            with suppress(OutputError):
                write_bytes(memory.path, json.dumps(content, indent=0, sort_keys=True).encode())


def file_digest(file: Path) -> bytes:
    """sha256 over a file's bytes, by its remembered value where there is one."""
    memory = _active.get()
    return _whole(file) if memory is None or file.stat().st_size <= SMALL else memory.digest(file)


def _whole(file: Path) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def _sampled(file: Path, size: int) -> str:
    """A digest over blocks of a file: its first and its last, and others at equal distances."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        for number in range(_SAMPLES):
            handle.seek(max(0, size - _BLOCK) * number // (_SAMPLES - 1))
            digest.update(handle.read(_BLOCK))
    return digest.hexdigest()
