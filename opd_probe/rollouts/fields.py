"""Fields of a row, checked one by one: every complaint names the place, the field, and what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from opd_probe.errors import InputError

_LARGEST = 2**62
"""Of ids and steps: beyond, integers of 64 bits end; which ids a model knows is checked when it is known."""

Fields = Mapping[str, Any]


def sequence(place: str, row: Fields, name: str) -> Sequence[Any]:
    """A field that must be a list."""
    value = row[name]
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        raise InputError(f"{place}: {name} is {type(value).__name__}; expected a list")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def token_ids(place: str, row: Fields, name: str) -> tuple[int, ...]:
    """A field that must be a list of token ids."""
    if row.get(name) is None:
        raise InputError(f"{place}: no {name}; expected a list of token ids")
    values = sequence(place, row, name)
    if not set(map(type, values)) <= {int}:  # JSON and Parquet hold no other integers; a program's lists may
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise InputError(f"{place}: {name} holds {value!r}; expected whole numbers")
        values = [int(value) for value in values]
    if values and min(values) < 0:
        raise InputError(f"{place}: {name} holds the negative id {min(values)}; expected ids of the tokenizer")
    if values and max(values) > _LARGEST:
        raise InputError(f"{place}: {name} holds {max(values)}, which no tokenizer has; expected ids of the tokenizer")
    return tuple(values)


def mask(place: str, row: Fields, name: str, length: int, of: str = "response_ids") -> tuple[int, ...] | None:
    """A field of one 0/1 (or bool) for each of ``length`` tokens ``of`` another field; None when it is not there."""
    if row.get(name) is None:
        return None
    values = sequence(place, row, name)
    if len(values) != length:
        raise InputError(f"{place}: {name} has {len(values)} entries for {length} {of}")
    for value in values:
        if value not in (0, 1):
            raise InputError(f"{place}: {name} holds {value!r}; expected 0 or 1")
    return tuple(int(value) for value in values)


def logprobs(place: str, row: Fields, name: str, length: int, of: str = "response_ids") -> tuple[float, ...] | None:
    """Likewise a field of numbers; NaN where null."""
    if row.get(name) is None:
        return None
    values = sequence(place, row, name)
    if len(values) != length:
        raise InputError(f"{place}: {name} has {len(values)} entries for {length} {of}")
    numbers = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating, type(None))):
            raise InputError(f"{place}: {name} holds {value!r}; expected numbers or null")
        numbers.append(math.nan if value is None else _float(place, name, value))
    return tuple(numbers)


def or_none(values: Sequence[float] | None) -> list[float | None] | None:
    """Numbers as JSON holds them: null where NaN."""
    return None if values is None else [None if math.isnan(value) else value for value in values]


def text(place: str, row: Fields, name: str) -> str | None:
    """A field that must be text; None when it is not there."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: {name} is {type(value).__name__}; expected text")
    return value


def needed_text(place: str, row: Fields, name: str) -> str:
    """A field that must be there and be text."""
    value = text(place, row, name)
    if value is None:
        raise InputError(f"{place}: no {name}; expected text")
    return value


def text_or_number(place: str, row: Fields, name: str, *, whole: bool = False) -> str | None:
    """A field that must be text or a number, as text; None when it is not there.

    Args:
        whole: 3.0 is ``"3"``, since a data frame makes floats of a column of ids in which one is missing.
    """
    value = row.get(name)
    if value is None:
        return None
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int, float, np.integer, np.floating)):
        return str(value)
    raise InputError(f"{place}: {name} is {type(value).__name__}; expected text or a number")


def whole_number(place: str, row: Fields, name: str) -> int | None:
    """A field that must be a whole number; None when it is not there."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer)) or value != value // 1:
        raise InputError(f"{place}: {name} is {value!r}; expected a whole number")
    if not -_LARGEST <= int(value) <= _LARGEST:
        raise InputError(f"{place}: {name} is beyond 64 bits; expected a whole number within them")
    return int(value)


def number(place: str, row: Fields, name: str) -> float | None:
    """A field that must be a number or a verdict; None when it is not there."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return _float(place, name, value)
    raise InputError(f"{place}: {name} is {value!r}; expected a number")


def _float(place: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers may be of any length
        raise InputError(f"{place}: {name} holds a whole number beyond all floats; expected a number") from None


def reference_answer(value: Any) -> str | None:
    """A reference answer as text: a text, a number, or a list of one of them; None for anything else, and for nothing.

    Test cases of programs and lists of several answers say nothing that an answer could be compared with.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value:
        return str(value)
    return None


def others(row: Fields, used: Collection[str]) -> dict[str, Any]:
    """The fields of a row without those named."""
    return {name: value for name, value in row.items() if name not in used}
