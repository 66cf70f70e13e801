"""How many threads small work deserves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL = 2_000_000
"""Output layers of fewer values than this belong to models whose operations are over before a second thread helps."""


@contextmanager
def fitting_threads(output_weight: Tensor) -> Iterator[None]:
    """One thread for small models on a CPU, while the block runs.

    Their operations take microseconds: a second thread gains nothing on an idle machine, and on a busy one every
    operation waits for it to be scheduled, which can cost ten times the work.
    """
    before = torch.get_num_threads()
    if output_weight.device.type != "cpu" or output_weight.numel() >= SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
