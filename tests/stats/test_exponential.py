"""e^x of numbers that are not above 0, against the standard library's."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_probe.stats.exponential import exp_of_nonpositive


def of(values: list[float]) -> list[float]:
    found: list[float] = exp_of_nonpositive(torch.tensor(values, dtype=torch.float64)).tolist()
    return found


@given(st.lists(st.floats(-708, 0), min_size=1, max_size=40))
def test_to_the_last_bits(values: list[float]) -> None:
    for value, found in zip(values, of(values), strict=True):
        assert math.isclose(found, math.exp(value), rel_tol=5e-16), value


def test_near_the_seams() -> None:
    """Where the whole number in x / ln 2 changes, and around 0."""
    seams = [-(n + half) * math.log(2) for n in range(0, 1000, 7) for half in (0.0, 0.5)]
    values = [min(0.0, seam + shift) for seam in seams for shift in (-1e-9, 0.0, 1e-9)]
    for value, found in zip(values, of(values), strict=True):
        if value > -708:
            assert math.isclose(found, math.exp(value), rel_tol=5e-16), value


def test_zero_is_exact_and_what_is_far_below_vanishes() -> None:
    exact, *far = of([0.0, -708.5, -1e9, -3e38, -math.inf])
    assert exact == 1.0
    assert all(0 <= one < 1e-307 for one in far)
    assert of([-0.0]) == [1.0]
