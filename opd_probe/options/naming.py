"""Names of runs and teachers, unique and short, and the file names made from them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from opd_probe.models.steps import step_of_name

_LONGEST = 160
"""Bytes; file systems take 255, of which some are for what is added to a name while a file is made."""


def user_path(value: str) -> Path:
    """A path as a user writes it, ``~`` for the home directory. One of a user that there is not stays as it is."""
    return Path(os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser raises for such a user


def exists(path: Path) -> bool:
    """Whether something is there. Text that is no path, being too long for one, names nothing."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def step_of_revision(revision: str | None) -> int | None:
    """The step that a hub revision such as ``checkpoint-500`` or ``step500`` names, or None."""
    return step_of_name(revision or "")


def unique_names(parts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Short names that differ: the last component, lengthened by parents where two are equal.

    Args:
        parts: for each key, the components of its path, outermost first.
    """
    depth = dict.fromkeys(parts, 1)
    while True:
        names = {key: "/".join(parts[key][-depth[key] :]) for key in parts}
        groups: dict[str, list[str]] = defaultdict(list)
        for key, name in names.items():
            groups[name].append(key)
        clashing = [key for group in groups.values() if len(group) > 1 for key in group]
        longer = [key for key in clashing if depth[key] < len(parts[key])]
        if not longer:
            return names
        for key in longer:
            depth[key] += 1


def path_parts(path: str | Path) -> tuple[str, ...]:
    """The components of an absolute path without its root; never empty."""
    return tuple(part for part in Path(path).parts if part != Path(path).anchor) or ("root",)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """For each name, one path component that is safe everywhere; different names get different ones.

    ``/`` becomes ``--``; where that is not reversible, or the name is too long, digits of its hash are appended.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        safe = re.sub(r"[^\w.@+-]", "_", name.replace("/", "--")).strip(".") or "_"
        short = safe.encode()[:_LONGEST].decode(errors="ignore")
        if short != safe or safe.casefold() in taken:
            safe = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        taken.add(safe.casefold())
        result[name] = safe
    return result
