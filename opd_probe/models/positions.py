"""For how many positions a model was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose ``factor`` reaches beyond a configuration's ``max_position_embeddings``; longrope and
llama3 have the whole length there."""


def max_positions(config: Any) -> int | None:
    """How many positions a model was built for, as servers take it; None where its configuration does not say.

    With scaled rotary positions that is the length before the scaling × its factor, whichever of the two lengths
    ``max_position_embeddings`` was left at.
    """
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or isinstance(stated, bool):
        return None
    return max([stated, *_reached(text, stated)])


def _reached(text: Any, stated: int) -> Iterator[int]:
    for scaling in _scalings(text):
        kind, factor = str(scaling.get("rope_type", scaling.get("type"))), scaling.get("factor")
        if not isinstance(factor, (int, float)) or not any(name in kind for name in _STRETCHED):
            continue
        if kind == "linear" and str(text.model_type).startswith("gemma3"):  # the whole length is stated
            continue
        original = scaling.get("original_max_position_embeddings")
        yield int((original if isinstance(original, int) else stated) * factor)


def _scalings(text: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters of a configuration, of every kind of layer."""
    for field in ("rope_parameters", "rope_scaling"):
        stated = getattr(text, field, None)
        if isinstance(stated, Mapping):
            yield stated
            yield from (value for value in stated.values() if isinstance(value, Mapping))
