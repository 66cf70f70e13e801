"""How far values in a narrow type may lie from what was rounded to them."""

from __future__ import annotations

import torch
from torch import Tensor


def is_narrow(values: Tensor) -> bool:
    """Whether they are in a floating type of less than 32 bits, as bfloat16."""
    return values.is_floating_point() and values.dtype.itemsize < 4


def rounding(values: Tensor) -> float:
    """Half the distance between neighbours in the type of some values at the largest finite one: what rounding may have
    changed, in their unit; 0 for none."""
    finite = values[torch.isfinite(values)]
    if not finite.numel():
        return 0.0
    largest = finite.abs().amax().double()
    kind = torch.finfo(values.dtype)
    return float(2.0 ** torch.log2(largest.clamp(min=kind.tiny)).floor() * kind.eps / 2)


def rounding_words(values: Tensor) -> str:
    """``in bfloat16, rounded by up to 0.0625``, of values in nats."""
    return f"in {str(values.dtype).removeprefix('torch.')}, rounded by up to {rounding(values):.3g} nats"
