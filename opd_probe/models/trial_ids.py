"""What a model is tried on: two short sequences, long enough to cross what its configuration makes short."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.models.adapters import adapter_ids
from opd_probe.models.lengths import LengthFactors
from opd_probe.models.placement import input_embeddings

SHORTEST, LONGEST = 9, 80
"""Tokens of the sequence that a model is tried on: at least, and at most, to cross what its configuration makes
short."""

_PARTS = "layer|head|expert|group|hidden|dim|freq|num_"
_LENGTHS = "window|chunk|top_?k$|local|block|bucket|conv|ratio|rate"
_THRESHOLD = re.compile(rf"^(?!.*({_PARTS})).*({_LENGTHS})")
"""Names under which configurations keep lengths at which something begins or ends, and not counts of parts."""


def trial_sequences(model: Any, factors: LengthFactors | None) -> tuple[Tensor, Tensor]:
    """Two sequences, [1, T] each, long enough to cross what the configuration makes short, of ordinary ids, of those
    with which an adapter does something of its own, and of the pad token, which may be sampled and by which some models
    count positions."""
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    length = max([SHORTEST, *(2 * value + 3 for value in thresholds(text.to_dict()) if 2 * value + 3 <= LONGEST)])
    bounds = [longest if isinstance(longest, int) else length]
    bounds += [] if factors is None else [factors.boundary]
    width = _embeddings(model)
    marked = [token for token in adapter_ids(model) if 0 <= token < width]
    length = max(6, min([max(length, 3 * (len(marked) + 2)), *bounds]))
    special = special_ids(model.config)
    ids = [index for index in range(3, width) if index not in special] or list(range(width))
    drawn = np.random.default_rng(0).integers(0, len(ids), (2, length))
    one, other = torch.from_numpy(np.asarray(ids)[drawn]).split(1)
    other = torch.where(other == one, torch.tensor(ids[0]), other)
    marked = marked[: max(0, length // 3 - 2)]  # where both begin alike
    one[0, 1 : 1 + len(marked)] = torch.tensor(marked, dtype=torch.int64)
    pad = getattr(text, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < width:
        one[0, length // 3] = pad  # the first in which they differ
    return one, other


def _embeddings(model: Any) -> int:
    """Ids that a model has embeddings for."""
    weight = getattr(input_embeddings(model), "weight", None)
    return int(model.config.get_text_config().vocab_size if weight is None else weight.shape[0])


def special_ids(config: Any) -> set[int]:
    """The ids that a configuration gives a meaning of their own, wherever it does."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            continue
        if re.search(r"token_(id|ids|index)$", str(name)):
            found |= {one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)}
    text = config.get_text_config()
    return found if text is config else found | special_ids(text)


def thresholds(config: dict[str, Any]) -> list[int]:
    """Lengths that a configuration sets at which something begins or ends: windows, chunks, what an index keeps."""
    found = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += thresholds(value)
        elif _THRESHOLD.search(str(name)) and isinstance(value, int) and not isinstance(value, bool) and value > 1:
            found.append(value)
    return found
