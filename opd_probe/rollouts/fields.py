"""Fields of a row, checked one by one: every complaint names the place, the field, and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from opd_probe.errors import InputError
from opd_probe.texts import parse_json

_LARGEST = 2**62
"""Of ids and steps: beyond, integers of 64 bits end; which ids a model knows is checked when it is known."""

LONGEST_FIELD = 200
"""Characters of a text that still names something; longer ones are content."""

MOST_FIELDS = 100
"""Fields that a trace keeps of a rollout."""

ANSWERS = "answers"
"""The key in ``extra`` of all reference answers, where there are several."""

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


ANSWER_KEYS = ("answer", "answers", "target", "targets", "value", "aliases", "text", "solution", "ground_truth")
"""Under which a reference answer that is an object has its texts; one with other keys is something else."""


def reference_answers(value: Any) -> tuple[str, ...]:
    """The reference answers of a problem as text, any of which is right; none for what no answer compares with.

    A text, a number, lists and arrays of them, an object with answers under :data:`ANSWER_KEYS`, and a text that is a
    JSON list of texts. Test cases of programs are none.
    """
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        value = value.tolist()
    if isinstance(value, str) and value.lstrip().startswith('["'):
        value = _texts(value) or value
    if isinstance(value, Mapping):
        held = {str(name): entry for name, entry in value.items() if entry is not None}
        if not held or not held.keys() <= set(ANSWER_KEYS):
            return ()
        value = list(held.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        found = [answer for entry in value for answer in reference_answers(entry)]
        return tuple(dict.fromkeys(answer for answer in found if answer.strip()))
    if isinstance(value, str) and value.lstrip().startswith("assert "):
        return ()
    return (str(value),) if isinstance(value, (str, int, float)) and value == value else ()


def _texts(value: str) -> list[str] | None:
    """A JSON list of texts, as some data sets put into a column of text; None for anything else."""
    try:
        found = parse_json(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(entry, str) for entry in found) else None


def several(answers: Sequence[str]) -> dict[str, Any]:
    """What ``extra`` keeps of several answers, the first of which is the ``answer``."""
    return {ANSWERS: list(answers)} if len(answers) > 1 else {}


def others(row: Fields, used: Collection[str]) -> dict[str, Any]:
    """The fields of a row without those named."""
    return {name: value for name, value in row.items() if name not in used}


def scalars(row: Fields) -> dict[str, Any]:
    """The fields of a row that are short texts, numbers or truth values."""
    return {str(name): value for name, value in row.items() if _is_scalar(value)}


def carried_fields(extra: Fields) -> str | None:
    """Of what a rollout carries along, the short texts, numbers and truth values, as JSON for a trace; those in objects
    under dotted names, as ``extra_info.level``. None where there are none."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = list(extra.items())
    for name, value in waiting:  # grows while it is walked: what is deeper comes after
        if isinstance(value, Mapping):
            below = [(f"{name}.{key}", entry) for key, entry in value.items() if len(name) <= LONGEST_FIELD]
            waiting += below[: max(0, _SEEN - len(waiting))]
        elif len(found) < MOST_FIELDS and _is_scalar(value):
            found[str(name)] = value.item() if isinstance(value, np.generic) else value
    return json.dumps(found, sort_keys=True) if found else None


_SEEN = 10_000
"""Entries of a row that are looked at."""


def _is_scalar(value: Any) -> bool:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (bool, int)) or (isinstance(value, str) and 0 < len(value) <= LONGEST_FIELD)
