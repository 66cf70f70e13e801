"""Weights that prime-rl exports: whole only beside a marker."""

from __future__ import annotations

import re
from pathlib import Path

import opd_probe.models.formats.huggingface as huggingface
import opd_probe.models.formats.peft as peft

MARKER = "STABLE"
_FOLDERS = ("weights", "weight")
_STEP = re.compile(r"step_\d+")


def inside(path: Path) -> Path | None:
    """The weights of ``step_N``; where it has none, the trainer's own sharded state."""
    if _STEP.fullmatch(path.name) is None:
        return None
    found = [path / name for name in _FOLDERS if _holds_weights(path / name)]
    if found:
        return found[0]
    return path / "trainer" if (path / "trainer" / ".metadata").is_file() else None


def refuses(path: Path) -> str | None:
    """Weights that are still being written: no marker in their directory or in that of the step."""
    exported = path.name in _FOLDERS and _STEP.fullmatch(path.parent.name)
    broadcast = _STEP.fullmatch(path.name) and path.parent.name in ("broadcasts", *_FOLDERS)
    if not (exported or broadcast) or not _holds_weights(path):
        return None
    places = [path, path.parent] if exported else [path]
    if any((place / MARKER).exists() for place in places):
        return None
    return f"prime-rl's weights without its {MARKER} marker, so they may not be whole; wait for it or take another step"


def _holds_weights(path: Path) -> bool:
    return huggingface.recognises(path) or peft.recognises(path)
