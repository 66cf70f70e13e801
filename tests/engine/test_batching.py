"""Batches: within the budget, little padding, everything once, longest first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from opd_probe.engine.batching import batches


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 2000))
def test_properties(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    flat = [lengths[index] for group in groups for index in group]
    assert flat == sorted(lengths, reverse=True)
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert padded <= budget or len(group) == 1
        assert padded - sum(lengths[index] for index in group) <= 0.1 * padded + 1e-9


def test_equal_lengths_fill_the_budget_in_order() -> None:
    assert batches([8] * 7, 24) == [[0, 1, 2], [3, 4, 5], [6]]


def test_too_long_for_the_budget_goes_alone() -> None:
    assert batches([5, 100, 5], 10) == [[1], [0, 2]]


def test_nothing() -> None:
    assert batches([], 10) == []
