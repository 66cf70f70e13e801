"""Numbers of many states in few bytes: one byte for a value, whole arrays compressed, as text for a page."""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.intervals import Floats

CODES = 253
"""Values that one byte can tell apart, beside the three that follow."""

BELOW, ABOVE, UNKNOWN = 253, 254, 255
"""−∞, ∞ and unknown."""

LOGS = 2000.0
"""Codes of probabilities for each nat below 1, in two bytes: a step of 0.05 %."""

NEVER, UNTOLD = 65_534, 65_535
"""A probability of 0, and one that is not known."""


def _numbers(values: Floats) -> Floats:
    return np.array([float(f"{value:.4g}") for value in values])


POSITIVE: Floats = _numbers(np.concatenate([[0.0], np.geomspace(1e-4, 100.0, CODES - 1)]))
"""0, and from 0.0001 to 100 in steps of 5.7 %."""

SIGNED: Floats = _numbers(
    np.concatenate([-np.geomspace(1e-3, 100.0, 126)[::-1], [0.0], np.geomspace(1e-3, 100.0, 126)])
)
"""From −100 to 100 in steps of 9.6 %, and 0."""

_LOGITS = np.linspace(-11.5, 11.5, CODES - 2)
SHARE: Floats = np.concatenate([[0.0], 1 / (1 + np.exp(-_LOGITS)), [1.0]])
"""0, 1, and between in even steps of the logit: of 9.6 % of the value near 0, and of what lacks to 1 near 1."""

DIFFERENCE: Floats = _numbers(
    np.concatenate([-np.geomspace(1e-3, 1.0, 126)[::-1], [0.0], np.geomspace(1e-3, 1.0, 126)])
)
"""From −1 to 1 in steps of 5.7 %, and 0."""


def encode(values: NDArray[Any], table: Floats) -> NDArray[np.uint8]:
    """The places of the nearest values of an ascending table; :data:`BELOW`, :data:`ABOVE` and :data:`UNKNOWN` for
    what is infinite or NaN."""
    values = np.asarray(values, dtype=np.float64)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, np.nan_to_num(values, posinf=0.0, neginf=0.0))
    codes = np.select([np.isnan(values), np.isposinf(values), np.isneginf(values)], [UNKNOWN, ABOVE, BELOW], codes)
    return codes.astype(np.uint8)


def encode_logs(logs: NDArray[Any]) -> NDArray[np.uint16]:
    """Log-probabilities as whole numbers of 1 / :data:`LOGS` nats below 0."""
    logs = np.asarray(logs, dtype=np.float64)
    steps = np.clip(np.rint(-LOGS * np.nan_to_num(logs, neginf=0.0)), 0, NEVER - 1)
    return np.select([np.isnan(logs), np.isneginf(logs)], [UNTOLD, NEVER], steps).astype(np.uint16)


def packed(values: NDArray[Any]) -> str:
    """An array, little-endian, compressed (zlib) and in base64."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return b64encode(zlib.compress(data, 6)).decode("ascii")


def smallest_width(largest: int) -> type[np.unsignedinteger[Any]]:
    """The unsigned type of the fewest bytes that holds a number."""
    return np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32


class Packs:
    """Packed arrays, equal ones held once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.size = 0
        self._places: dict[str, int] = {}

    def add(self, values: NDArray[Any]) -> int:
        """The place of an array among the texts."""
        text = packed(values)
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
            self.size += len(text) + 3
        return self._places[text]

    def drop(self, count: int, size: int) -> None:
        """Forget all but the first ones, which were of a size."""
        for text in self.texts[count:]:
            del self._places[text]
        del self.texts[count:]
        self.size = size
