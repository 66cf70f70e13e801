"""Digits of what people read: significant ones, the same place for a value and its interval, never −0."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opd_probe.digits import digits, with_interval


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0.00061234, 0.00055, 0.00068), "0.00061 [0.00055, 0.00068]"),
        ((-0.0, -0.0, -0.0), "0 [0, 0]"),
        ((-1.2e-7, -1.9e-7, -4e-8), "-1.2e-07 [-1.9e-07, -4e-08]"),
        ((0.8123, 0.8021, 0.8224), "0.812 [0.802, 0.822]"),
        ((-0.0000004, -0.0012, 0.0011), "0 [-0.0012, 0.0011]"),
        ((123.456, 101.2, 150.9), "123 [101, 151]"),
        ((123456.7, 101234.0, 150987.0), "123457 [101234, 150987]"),
        ((0.5, 0.5, 0.5), "0.5000 [0.5000, 0.5000]"),
        ((0.5, 0.499999999, 0.500000001), "0.500000 [0.500000, 0.500000]"),
        ((1.5, 0.1, math.inf), "1.500 [0.100, inf]"),
        ((0.25, None, None), "0.2500"),
        ((0.25, math.nan, 0.5), "0.2500"),
        ((0.0, None, None), "0"),
        ((4.32e-6, None, None), "4.320e-06"),
        ((3.2e7, None, None), "3.200e+07"),
        ((-math.inf, None, None), "-inf"),
        ((0.0, 0.0, 0.03), "0 [0, 0.030]"),
    ],
)
def test_examples(given: tuple[float, float | None, float | None], text: str) -> None:
    assert with_interval(*given) == text


FINITE = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-12)


@given(FINITE, FINITE, FINITE)
@example(0.99999999, 0.9, 1.0)
@example(9.9996e-5, 9.99e-5, 1.0001e-4)
def test_what_is_read_is_the_number(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    shown = digits(value, low, high)
    width = high - low
    largest = max(abs(low), abs(high))
    for number, text in zip((value, low, high), shown, strict=True):
        assert not text.startswith("-0 ")
        assert text != "-0"
        # Off by less than the second digit of the width; of a narrow one the sixth of the largest, of none the fourth.
        assert abs(float(text) - number) <= max(0.06 * width, (1e-5 if width > 0 else 1e-3) * largest)
    assert float(digits(value)[0]) == pytest.approx(value, rel=1e-3)
