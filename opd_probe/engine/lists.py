"""Traces of top-k lists that are at hand, without a model: what the lists say of each other, and the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.stats.topk import NO_ID
from opd_probe.trace.schema import STATE_COLUMNS

Side = tuple[Tensor, Tensor, Tensor | None]
"""Of n states: ids, the model's own log-probs, the other model's where they were given; [n, K] each."""


def completed(own: Side, other: Side) -> Tensor:
    """The other model's log-probs at this one's top ids: as given, else those in its own list. Elsewhere NaN, or −inf
    where the other list names every id of probability above 0, and where there is no id."""
    if own[2] is not None:
        return own[2]
    ids, order = other[0].sort(dim=1)
    place = torch.searchsorted(ids, own[0].contiguous()).clamp_(max=ids.shape[1] - 1)
    found = other[1].gather(1, order).gather(1, place)
    found = found.masked_fill(ids.gather(1, place) != own[0], torch.nan)
    whole = torch.isneginf(other[1][:, -1:])
    return found.masked_fill((whole & found.isnan()) | (own[0] == NO_ID), -torch.inf)


def state_arrays(columns: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """The columns of a trace; those that nobody gave are NaN (ids: −1)."""
    n = len(columns["position"])
    arrays: dict[str, NDArray[Any]] = {}
    for column in STATE_COLUMNS:
        if column.name in columns:
            arrays[column.name] = columns[column.name].numpy().astype(column.dtype)
        elif column.dtype != "string" and not column.optional:
            arrays[column.name] = np.full(n, np.nan if column.dtype.startswith("float") else -1, dtype=column.dtype)
    return arrays
