"""Kinds of rollout files, one module each. To add one, write its module and enter it into :data:`SOURCES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts.sources import (
    inspect_ai,
    lighteval,
    lm_eval,
    native,
    nemo_rl,
    opd,
    open_instruct,
    openai,
    prime_rl,
    slime,
    swift,
    trl,
    verl,
)
from opd_probe.rollouts.sources.source import Skipped, Source, Where

__all__ = ["SOURCES", "Skipped", "Source", "Where", "recognise", "source_named"]

SOURCES: tuple[Source, ...] = (
    verl.SOURCE,
    opd.SOURCE,
    swift.SOURCE,
    trl.SOURCE,
    slime.SOURCE,
    open_instruct.SOURCE,
    prime_rl.SOURCE,
    nemo_rl.SOURCE,
    lm_eval.SOURCE,
    lighteval.SOURCE,
    inspect_ai.SOURCE,
    openai.SOURCE,
    native.SOURCE,
)
"""Asked in this order; the first that recognises a file's first row has the file."""


def recognise(row: Mapping[str, Any]) -> Source | None:
    """The kind of file that begins with this row, whose null fields have been left out; None for an unknown one."""
    return next((source for source in SOURCES if source.fits(row)), None)


def source_named(name: str) -> Source:
    """The kind of this name.

    Raises:
        InputError: there is none.
    """
    for source in SOURCES:
        if source.name == name:
            return source
    raise InputError(f"--kind {name}: no such kind; expected {', '.join(source.name for source in SOURCES)}")


def accepted() -> str:
    """All kinds with their fields, for error messages."""
    return "; ".join(f"{source.name} ({source.fields})" for source in SOURCES)
