"""What tells whether a tensor still holds what it held."""

from __future__ import annotations

import pytest
import torch

from opd_probe.stats.contents import contents


@pytest.mark.parametrize("shape", [(), (0,), (3,), (513, 7), (700, 1024), (2, 300_001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_any_change_is_seen_however_it_is_made(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    seen = {contents(tensor)}
    assert seen == {contents(tensor.clone())}
    changes = 0
    if tensor.numel():
        flat = tensor.view(-1)
        for place in {0, len(flat) // 2, len(flat) - 1}:
            flat.data[place] += 1
            seen.add(contents(tensor))
            changes += 1
    if tensor.numel() > 9:
        flat = tensor.view(-1)
        for one, other in ((1, 2), (0, 9), (3, len(flat) - 2)):  # in a word or a row, and far apart
            flat[one], flat[other] = 5, 7
            seen.add(contents(tensor))
            flat.data[one], flat.data[other] = 7, 5
            seen.add(contents(tensor))
            changes += 2
    assert len(seen) == 1 + changes


def test_shape_type_and_layout() -> None:
    tensor = torch.arange(24_000, dtype=torch.float32).view(100, 240)
    assert contents(tensor) != contents(tensor.view(240, 100)) != contents(tensor.view(torch.int32))
    assert contents(tensor.t()) == contents(tensor.t().contiguous()) != contents(tensor)
    assert contents(tensor.view(-1)[1:]) == contents(tensor.view(-1)[1:].clone())
