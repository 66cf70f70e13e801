"""Exact top-k against a full sort by (value descending, id ascending)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from opd_probe.stats.topk import BLOCK, block_maxima, exact_topk


def sorted_ids(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    ids = np.arange(logits.shape[1])
    return np.stack([np.lexsort((ids, -(row + np.float32(0.0))))[:k] for row in logits])


def check(logits: NDArray[np.float32], k: int) -> None:
    before = logits.copy()
    actual = exact_topk(torch.from_numpy(logits), k)
    assert actual.dtype == torch.int64
    np.testing.assert_array_equal(actual.numpy(), sorted_ids(logits, k))
    np.testing.assert_array_equal(logits, before)


WIDTHS = [1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 640, 1000]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("levels", [1, 2, 5, 100_000])
def test_widths_around_the_block_with_heavy_ties(width: int, levels: int) -> None:
    generator = np.random.default_rng(width * levels)
    logits = generator.integers(0, levels, (5, width)).astype(np.float32) - levels / 2
    for k in {1, min(2, width), min(3, width), min(16, width), max(1, width - 1), width}:
        check(logits.astype(np.float32), k)


def test_negative_zero_equals_zero() -> None:
    logits = np.where(np.arange(300) % 2 == 0, -0.0, 0.0).astype(np.float32)[None]
    check(logits, 2)
    check(logits, 150)
    assert exact_topk(torch.from_numpy(logits), 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("width", [65, 200, 1000])
@pytest.mark.parametrize("finite", [1, 2, 40])
def test_masked_vocabularies(width: int, finite: int) -> None:
    generator = np.random.default_rng(finite)
    logits = np.full((4, width), -np.inf, dtype=np.float32)
    for row in logits:
        row[generator.choice(width, finite, replace=False)] = generator.normal(size=finite)
    for k in (1, 2, 3, 64, width):
        check(logits, k)


def test_short_last_block_among_masked_ones() -> None:
    """Ids beyond the vocabulary must never be returned, not even where all that is left is -inf."""
    logits = np.full((1, 3 * BLOCK + 1), -np.inf, dtype=np.float32)
    logits[0, -1] = 1.0
    assert exact_topk(torch.from_numpy(logits), 1).tolist() == [[3 * BLOCK]]
    wide = np.full((1, 9 * BLOCK + 2), -np.inf, dtype=np.float32)
    wide[0, -1] = 1.0
    check(wide, 4)


def test_blocks_of_equal_maximum_are_taken_in_id_order() -> None:
    logits = np.zeros((1, 40 * BLOCK), dtype=np.float32)
    logits[0, ::BLOCK] = 1.0
    for k in (1, 2, 3, 7):
        check(logits, k)
    logits[0, 5 * BLOCK : 6 * BLOCK] = 1.0
    for k in (3, 6, 7, 15):
        check(logits, k)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_logits(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 400))
    values = st.sampled_from([-np.inf, -3.5, -1.0, -0.0, 0.0, 1e-38, 1.0, 1.0000001, 7.0, 3e38])
    logits = data.draw(hnp.arrays(np.float32, (2, width), elements=values, fill=st.nothing()))
    k = data.draw(st.integers(1, width))
    check(logits, k)


def test_block_maxima_pass_nan_on() -> None:
    logits = torch.zeros(2, 130)
    logits[1, 129] = torch.nan
    maxima = block_maxima(logits)
    assert maxima.shape == (2, 3)
    assert torch.isnan(maxima).tolist() == [[False] * 3, [False, False, True]]


def test_row_order_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.integers(0, 6, (20, 700)).astype(np.float32))
    order = torch.from_numpy(generator.permutation(20))
    assert torch.equal(exact_topk(logits, 4)[order], exact_topk(logits[order], 4))
