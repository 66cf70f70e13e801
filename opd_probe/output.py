"""Everything that lands in ``--out``: checked for writability first, each file whole or not there at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from opd_probe.atomic import whole_file
from opd_probe.errors import InputError, OutputError
from opd_probe.texts import real_path


def output_path(text: str | Path) -> Path:
    """The path that ``--out`` or ``out=`` names. A colon in it is a colon.

    Raises:
        OutputError: it is the address of something that is no disk, such as ``s3://bucket/out``.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)):
        raise OutputError(f"output {text}: expected a path on a disk of this machine; copy results there afterwards")
    return Path(text)


def existing_directory(directory: Path) -> Path:
    """The directory itself, or the nearest above it that is there."""
    place = directory.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


def check_writable(directory: Path) -> None:
    """Fail before any work when a directory cannot be made or written to. Creates nothing.

    Raises:
        OutputError: says why.
    """
    place = existing_directory(directory)
    if not place.is_dir():
        raise OutputError(f"output {directory}: {place} is not a directory; choose another place with --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"output {directory}: no permission to write in {place}; choose another place with --out")


def check_file_writable(path: Path) -> None:
    """As :func:`check_writable`, for a file that is to be written.

    Raises:
        OutputError: says why.
    """
    if path.is_dir():
        raise OutputError(f"output {path}: is a directory; give a file name with --out")
    check_writable(path.parent)


def rows_file(text: str, read: Sequence[str] = ()) -> Path:
    """The file of rows that ``--out`` names, checked before any work; ``read`` are the files that are to be read.

    Raises:
        InputError: its name does not end in .jsonl or .parquet, or it is one of those that are read.
        OutputError: it cannot be written.
    """
    path = output_path(text)
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--out {text}: expected the .jsonl or .parquet file to write")
    check_file_writable(path)
    if any(real_path(path) == real_path(given) for given in read):
        raise InputError(f"--out {text}: is a file to be read, which is not written over; choose another name")
    return path


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Within the block no other process that asks for it works in the directory, which is made; empty, it goes again.

    On file systems that know no locks nothing is claimed.

    Raises:
        OutputError: another process does, or it cannot be made.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        handle = os.open(make_folder(directory), os.O_RDONLY)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"output {directory}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
    try:
        _lock(directory, handle)
        yield
    finally:
        os.close(handle)
        with suppress(OSError):  # not empty: it stays
            for folder in made:
                folder.rmdir()


def _lock(directory: Path, handle: int) -> None:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"output {directory}: another process is working there; wait until it has ended, or choose another place "
            "with --out"
        ) from None
    except (ImportError, OSError):
        return


def remove_file(path: Path) -> None:
    """Remove a file that is to be written anew, if it is there.

    Raises:
        OutputError: it cannot be removed, as a directory of that name.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"output {path}: cannot be replaced ({error.strerror}); remove it, or choose another place with --out"
        ) from None


def make_folder(path: Path) -> Path:
    """Make a directory and those above it, if they are not there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"output {path}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file that appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"output {path}: cannot be written ({error.strerror}); free space or choose another --out"
        ) from None
    return path
