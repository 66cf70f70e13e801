"""One rule for the digits of every number that people read: a value and its interval end at the same place."""

from __future__ import annotations

import math

ALONE = 4
"""Significant digits of a value without an interval."""

_FEWEST, _MOST = 2, 6
"""Significant digits of the largest of a value and its ends, whatever the interval's width."""

_PLAIN = range(-4, 6)
"""Powers of ten that are written out; smaller and larger numbers are written as 4.3e-06."""


def digits(value: float, low: float | None = None, high: float | None = None) -> tuple[str, ...]:
    """A number as text; or a value with both ends of its interval.

    All end at the place of the second significant digit of the interval's width; without an interval, or with one of no
    width, at that of the fourth of the value. A number that is nothing but rounding there is ``0``, and never −0.

    Args:
        value: finite or infinite.
        low, high: both or none.
    """
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    numbers = [value, *((low, high) if low is not None and high is not None else ())]
    largest = max((abs(number) for number in numbers if math.isfinite(number)), default=0.0)
    if largest == 0:
        return tuple(_infinite(number) if math.isinf(number) else "0" for number in numbers)
    lead = _power(largest)
    width = high - low if known and low is not None and high is not None else 0.0
    last = _power(width) - 1 if width > 0 else lead - ALONE + 1
    last = min(max(last, lead - _MOST + 1), lead - _FEWEST + 1)
    return tuple(_text(number, last, lead in _PLAIN) for number in numbers)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """``0.0123 [0.0101, 0.0145]``, or the value alone where an end is not known."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return digits(value)[0]
    shown = digits(value, low, high)
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def true_minus(text: str) -> str:
    """Numbers with the sign that print has for minus."""
    return text.replace("-", "−")


def _power(number: float) -> int:
    """The place of the first significant digit: 0 for 1 to 9.99."""
    return math.floor(math.log10(number))


def _infinite(number: float) -> str:
    return "inf" if number > 0 else "-inf"


def _text(number: float, last: int, plain: bool) -> str:
    if math.isinf(number):
        return _infinite(number)
    if abs(number) < 0.5 * 10.0**last:
        return "0"
    if plain:
        text = f"{number:.{max(0, -last)}f}"
        return "0" if not float(text) else text
    return f"{number:.{max(0, _power(abs(number)) - last)}e}"
