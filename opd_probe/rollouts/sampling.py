"""How responses were sampled, as far as their files say: temperature and truncation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0.0, -1.0),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
}
"""What changes a sampler's distribution, under the names that samplers give it, and the values that change nothing."""

_NESTED = ("sampling", "sampling_params", "sampling_parameters", "gen_kwargs", "generation_kwargs")


def sampling_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The fields of a row, or of a mapping in it, that :data:`NEUTRAL` names; greedy decoding is temperature 0.

    What is no finite number says nothing.
    """
    found: dict[str, float] = {}
    for held in (row, *(row[name] for name in _NESTED if isinstance(row.get(name), Mapping))):
        found |= {name: float(held[name]) for name in NEUTRAL if _is_number(held.get(name))}
        if held.get("do_sample") is False:
            found["temperature"] = 0.0
    return found


def _is_number(value: Any) -> bool:
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def sampling_words(sampling: Mapping[str, float]) -> str | None:
    """``temperature 0.7, top_p 0.95``: the temperature and what else changed the distribution; None: nothing known."""
    told = [name for name in NEUTRAL if name in sampling and (name == "temperature" or _changes(name, sampling[name]))]
    return ", ".join(f"{name} {sampling[name]:g}" for name in told) or None


def _changes(name: str, value: float) -> bool:
    return value not in NEUTRAL[name]
