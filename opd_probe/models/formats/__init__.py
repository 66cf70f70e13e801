"""Checkpoint formats, one module each. To add one, write its module and enter it into :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opd_probe.models.formats import huggingface, peft


@dataclass(frozen=True, slots=True)
class Format:
    """What a checkpoint format knows of a directory, by its file names alone.

    Attributes:
        name: as recorded in a checkpoint and in a trace.
        accepted: what the directory must hold, for error messages.
        recognises: whether a directory is such a checkpoint.
        weight_files: the files that hold the weights, in name order.
        base: the model that the weights change (a path or a hub id), or None.
    """

    name: str
    accepted: str
    recognises: Callable[[Path], bool]
    weight_files: Callable[[Path], list[Path]]
    base: Callable[[Path], str | None]


FORMATS: tuple[Format, ...] = (
    Format("peft", peft.ACCEPTED, peft.recognises, peft.weight_files, peft.base),
    Format("huggingface", huggingface.ACCEPTED, huggingface.recognises, huggingface.weight_files, lambda _: None),
)
"""Asked in this order; the first that recognises a directory has it."""
