"""Files of others, which may be anything: where they lie, and their text and JSON, whole or refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any


def check_ordinary(path: Path) -> None:
    """Refuse what is no file of its own, such as a pipe, from which reading would wait for ever.

    Raises:
        OSError: it is none, or is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not an ordinary file", os.fspath(path))


def read_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read. ValueError: it is no such text.
    """
    check_ordinary(path)
    return path.read_text(encoding=encoding, errors=errors)


def read_json(path: Path, *, encoding: str = "utf-8") -> Any:
    """The JSON document in a file.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON.
    """
    return parse_json(read_text(path, encoding=encoding))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def within(root: Path, name: str) -> Path:
    """The path of a file that another file names, which must lie in a directory or below it.

    Links are followed wherever they lead: the hub's client keeps models that way.

    Raises:
        ValueError: the name leads out of the directory.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\x00" in name:
        raise ValueError(f"names {name}, which leads out of its directory")
    if any(len(os.fsencode(part)) > 255 for part in Path(name).parts):
        raise ValueError(f"names {name[:40]}…, which is too long for a file's name")
    return root / name


def real_path(path: str | Path) -> Path:
    """The absolute path without links; of a circle of links the path itself, where ``Path.resolve`` raises."""
    return Path(os.path.realpath(path))
