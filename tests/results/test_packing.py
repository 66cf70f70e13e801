"""Numbers in one or two bytes: how near they stay, and arrays that are held once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opd_probe.results import packing
from tests.pages.reports import unpacked


@pytest.mark.parametrize(
    ("table", "low", "high", "near", "least"),
    [
        (packing.POSITIVE, 1e-4, 100.0, 0.03, 5e-5),
        (packing.SIGNED, 1e-3, 100.0, 0.05, 5e-4),
        (packing.SHARE, 1e-5, 1.0, 0.05, 1e-5),
        (packing.DIFFERENCE, 1e-3, 1.0, 0.03, 5e-4),
    ],
)
def test_values_stay_near(table: np.ndarray, low: float, high: float, near: float, least: float) -> None:
    assert (np.diff(table) > 0).all()
    assert len(table) == packing.CODES
    assert max(-table[0], table[-1]) == high
    values = np.geomspace(low, high, 5000)
    if table[0] < 0:
        values = np.concatenate([values, -values, [0.0]])
    found = table[packing.encode(values, table)]
    np.testing.assert_allclose(found, values, rtol=near, atol=least)
    assert (found[values == 0] == 0).all()
    np.testing.assert_array_equal(packing.encode(np.append(table, [1e9, -1e9]), table)[:-2], np.arange(len(table)))


def test_what_is_no_number_has_codes_of_its_own() -> None:
    values = [math.nan, math.inf, -math.inf, 1e9]
    codes = packing.encode(np.array(values), packing.SIGNED).tolist()
    assert codes == [packing.UNKNOWN, packing.ABOVE, packing.BELOW, packing.CODES - 1]
    logs = packing.encode_logs(np.array([math.nan, -math.inf, 0.0, -1.0, -1e6, 1e-7]))
    assert logs.tolist() == [packing.UNTOLD, packing.NEVER, 0, 2000, packing.NEVER - 1, 0]


def test_equal_arrays_are_held_once_and_the_last_ones_can_be_forgotten() -> None:
    packs = packing.Packs()
    values = np.arange(1000, dtype=np.uint32)
    first = packs.add(values)
    np.testing.assert_array_equal(unpacked(packs.texts[first], "<u4"), values)
    before = len(packs.texts), packs.size
    assert packs.add(values.copy()) == first
    assert (len(packs.texts), packs.size) == before
    packs.add(values + 1)
    assert packs.size > before[1]
    packs.drop(*before)
    assert (len(packs.texts), packs.size) == before
    assert packs.add(values + 1) == 1
