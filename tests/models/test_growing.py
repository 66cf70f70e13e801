"""Keys and values that grow in place, held against those that are copied with every change."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from opd_probe.models.growing import COLUMNS, GrowingLayer

CHANGES = ["token", "many", "join", "leave", "repeat"]
Rows = list[torch.Tensor]


def _fresh(rows: int, length: int, first: float) -> DynamicLayer:
    layer = DynamicLayer()
    keys = first + torch.arange(rows * length * 2, dtype=torch.float32).view(rows, 1, length, 2)
    layer.update(keys, -keys)
    return layer


def _same(layer: GrowingLayer, rows: Rows) -> None:
    """Every row ends with its own keys; their negatives are its values."""
    assert layer.keys is not None
    assert layer.values is not None
    assert layer.keys.shape[0] == len(rows)
    for number, row in enumerate(rows):
        assert torch.equal(layer.keys[number, 0, layer.keys.shape[-2] - len(row) :], row)
        assert torch.equal(layer.values[number, 0, layer.keys.shape[-2] - len(row) :], -row)
    assert bool(torch.isfinite(layer.keys).all())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["token", "many", "join", "leave", "repeat"]), st.integers(1, 9)), max_size=12)
)
def test_any_order_of_changes(changes: list[tuple[str, int]]) -> None:
    begun = _fresh(2, 5, 0.0)
    assert begun.keys is not None
    layer, rows = GrowingLayer(begun), [row[0] for row in begun.keys]
    for number, (change, size) in enumerate(changes, 1):
        count = len(rows)
        if change in ("token", "many"):
            for token in range(size if change == "token" else COLUMNS):
                new = torch.full((count, 1, 1, 2), 1000.0 * number + token) + torch.arange(count).view(count, 1, 1, 1)
                layer.update(new, -new)
                rows = [torch.cat([row, one[0]]) for row, one in zip(rows, new, strict=True)]
        elif change == "join":
            other = _fresh(1 + size % 3, 3 * size, 1e5 * number)
            assert other.keys is not None
            rows += [row[0].clone() for row in other.keys]
            layer.join(other)
        else:
            kept = [0] * size if change == "repeat" else [row for row in range(count) if row % 4 != size % 4] or [0]
            if change == "leave" and len(kept) > 1:  # the last fills the first gap, as in sampling
                kept = [row for row in range(len(kept)) if row in kept] + [row for row in kept if row >= len(kept)]
            layer.reorder_cache(torch.tensor(kept))
            rows = [rows[row] for row in kept]
            assert layer.keys is not None
            if padded := layer.keys.shape[-2] - max(len(row) for row in rows):
                layer.trim(padded)
        _same(layer, rows)
