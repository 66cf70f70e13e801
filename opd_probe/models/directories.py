"""Directories that others write to while we look: what vanishes, or may not be opened, holds nothing for us."""

from __future__ import annotations

import os
from pathlib import Path


def entries(path: Path) -> list[Path]:
    """What is in a directory, in the order of names; nothing where it cannot be listed."""
    return [path / name for name in _names(path, directories=False)]


def subdirectories(path: Path, prefix: str = "") -> list[Path]:
    """The directories in a directory whose names begin so, links to directories among them, in the order of names."""
    return [path / name for name in _names(path, directories=True, prefix=prefix)]


def _names(path: Path, *, directories: bool, prefix: str = "") -> list[str]:
    """Listed without asking for each entry's state, since the directory above a checkpoint may hold thousands."""
    try:
        with os.scandir(path) as found:
            named = (entry for entry in found if entry.name.startswith(prefix))
            return sorted(entry.name for entry in named if not directories or _is_directory(entry))
    except OSError:
        return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def files(path: Path, pattern: str) -> list[Path]:
    """The ordinary files in a directory whose names fit a pattern, in the order of names: from a pipe reading would
    wait for ever."""
    return sorted(file for file in path.glob(pattern) if file.is_file())


def is_directory(path: Path) -> bool:
    """Whether a path is a directory; False where nobody may look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def closed(path: Path) -> str | None:
    """Why a directory cannot be looked into, in words that follow its path; None: it can."""
    try:
        with os.scandir(path):
            pass
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    return None if os.access(path, os.X_OK) else "cannot be searched (Permission denied)"
