"""How far values in a narrow type may lie from what was rounded to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.2}
"""Nats by which a value may differ when a model of a type is run again: other batches round otherwise. The statistics
are float32 even of a float64 model."""


def rerun_tolerance(types: Iterable[str], *, reduced: bool) -> float:
    """Nats that rounding alone may change a value by when models are run again: of the coarsest of their types.

    Args:
        types: by name, such as ``bfloat16``; others do not count.
        reduced: whether products of float32 matrices are taken in less.
    """
    found = max((TOLERANCES[kind] for kind in types if kind in TOLERANCES), default=TOLERANCES["float32"])
    return max(found, TOLERANCES["bfloat16"]) if reduced else found


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
