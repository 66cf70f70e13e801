"""The directory in which the hub's client keeps a model: ``models--org--name`` with ``refs`` and ``snapshots``."""

from __future__ import annotations

import re
from pathlib import Path

from opd_probe.models.directories import entries, is_directory, subdirectories
from opd_probe.texts import read_text

_NAME = re.compile(r"models--(.+)")
_SNAPSHOTS = "snapshots"


def repository(path: Path) -> tuple[str, Path] | None:
    """The hub id and the directory of the model that a path is, or is a snapshot of; None: neither."""
    for place in (path, path.parent.parent if path.parent.name == _SNAPSHOTS else path):
        match = _NAME.fullmatch(place.name)
        if match is not None and is_directory(place / _SNAPSHOTS):
            return match[1].replace("--", "/", 1), place
    return None


def revisions(place: Path) -> dict[Path, str]:
    """The snapshots of a model and the revision of each: the name that points to it, ``main`` first, else its hash."""
    names: dict[str, str] = {}
    for ref in sorted(_refs(place / "refs"), key=lambda name: name != "main"):
        try:
            names.setdefault(read_text(place / "refs" / ref).strip(), ref)
        except (OSError, UnicodeDecodeError):
            continue
    return {snapshot: names.get(snapshot.name, snapshot.name) for snapshot in subdirectories(place / _SNAPSHOTS)}


def inside(path: Path) -> Path | None:
    """The snapshot that stands for a model: that of ``main``, or the only one."""
    found = repository(path)
    if found is None or found[1] != path:
        return None
    known = revisions(path)
    main = [snapshot for snapshot, revision in known.items() if revision == "main"]
    return main[0] if main else next(iter(known)) if len(known) == 1 else None


def _refs(place: Path) -> list[str]:
    """Names of branches and tags, some of which have a ``/``."""
    return [
        f"{entry.name}/{below}" if is_directory(entry) else entry.name
        for entry in entries(place)
        for below in (_refs(entry) if is_directory(entry) else [""])
    ]
