"""Files that appear whole or not at all, and files whose room on the disk is theirs."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write so that the file takes the place of ``path`` when the block ends; of a failed one nothing is left.

    Makes the folder that the file lies in, and removes what processes of this machine left unfinished there that were
    killed.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the place itself may be what is wrong, and that error is the one to report
            temporary.unlink()


def _machine() -> str:
    """This machine's name, as far as it may stand in a file's: several may share a disk, and numbers of processes."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]


def _remove_stale(folder: Path) -> None:
    if os.name != "posix":
        return
    ours = re.compile(rf"\..+\.{re.escape(_machine())}\.([1-9][0-9]*)\.tmp")
    for entry in folder.iterdir():
        match = ours.fullmatch(entry.name)
        if match is None or _is_alive(int(match[1])):
            continue
        with suppress(OSError):
            entry.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file ``size`` bytes long, all of which the disk has room for: a later write to a map of it, where a full
    disk would end the process without a word, cannot fail.

    Raises:
        OSError: there is no room, or a limit on the size of files forbids it.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
    # Where the system knows no such request, what is written has its room.
    block = bytes(1 << 20)
    place = file.seek(0, os.SEEK_END)
    while place < size:
        place += file.write(block[: size - place])
    file.flush()
