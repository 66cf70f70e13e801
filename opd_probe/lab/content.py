"""What a recipe is made of, as data for its digest."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any

__all__ = ["added", "content"]

_ADDED = "added"


def added(default: Any) -> Any:
    """A field of a recipe that was added after recipes had been published.

    While it holds its default it does not enter the digest, so that what older recipes made keeps its name.
    """
    return field(default=default, metadata={_ADDED: True})


def content(recipe: Any) -> Any:
    """A recipe as dictionaries, lists and plain values."""
    if is_dataclass(recipe):
        return {f.name: content(getattr(recipe, f.name)) for f in fields(recipe) if not _left_out(recipe, f)}
    if isinstance(recipe, (tuple, list)):
        return [content(item) for item in recipe]
    return recipe


def _left_out(recipe: Any, entry: Field[Any]) -> bool:
    return _ADDED in entry.metadata and entry.default is not MISSING and getattr(recipe, entry.name) == entry.default
