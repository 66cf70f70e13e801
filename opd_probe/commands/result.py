"""What a command hands back to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """Rows to print and files that were written.

    Attributes:
        rows: JSON types only.
        columns: those that a table shows.
        format: ``table``, ``json`` or ``csv``.
    """

    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    format: str
    files: tuple[Path, ...] = ()
