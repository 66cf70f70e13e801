"""Sequences through a model together, as far as that is exact, and each state under the factors of its length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.models.lengths import LengthFactors
from opd_probe.models.trials import Paths
from opd_probe.types import LengthRule

Ints = NDArray[np.int64]


class Model(Protocol):
    """What is needed of a :class:`opd_probe.models.loading.LoadedModel`, which says more of it."""

    paths: Paths

    @property
    def length_factors(self) -> LengthFactors | None:
        """What of it depends on the length of a call."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        ...

    def hidden(self, input_ids: Tensor, shared: int = 0) -> Tensor:
        """Inputs of the output layer, [B, T - shared, d]."""
        ...


def outputs(
    model: Model,
    ids: Sequence[Ints],
    index: Sequence[Ints],
    shared: int = 0,
    *,
    wholes: Sequence[int] | None = None,
    rule: LengthRule = "prefix",
) -> Tensor:
    """See :meth:`opd_probe.models.loading.LoadedModel.outputs`."""
    factors = model.length_factors
    if factors is None:
        return _together(model, ids, index, shared)
    lengths = wholes if wholes is not None else [len(one) for one in ids]
    groups = _by_factors(factors, index, lengths, rule)
    places: list[Ints] = []
    parts: list[Tensor] = []
    starts = np.cumsum([0, *(len(one) for one in index)])
    for length, rows in groups:
        cut = [ids[row][: int(index[row][chosen[-1]]) + 1] for row, chosen in rows]
        with factors.of_length(length):
            parts.append(_together(model, cut, [index[row][chosen] for row, chosen in rows], shared))
        places += [starts[row] + chosen for row, chosen in rows]
    order = torch.from_numpy(np.argsort(np.concatenate(places)))
    found = torch.cat(parts)
    return found.index_select(0, order.to(found.device))


def _by_factors(
    factors: LengthFactors, index: Sequence[Ints], wholes: Sequence[int], rule: LengthRule
) -> list[tuple[int, list[tuple[int, Ints]]]]:
    """The states by what decides their factors: a length of each group, and for each row in it the numbers of its
    states there."""
    groups: dict[tuple[int, ...], tuple[int, list[tuple[int, Ints]]]] = {}
    for row, (places, whole) in enumerate(zip(index, wholes, strict=True)):
        chosen: dict[tuple[int, ...], list[int]] = {}
        for number, place in enumerate(places.tolist()):
            length = factors.deciding(rule, place + 1, whole)
            key = factors.key(length)
            groups.setdefault(key, (length, []))
            chosen.setdefault(key, []).append(number)
        for key, numbers in chosen.items():
            groups[key][1].append((row, np.asarray(numbers, dtype=np.int64)))
    return list(groups.values())


def _together(model: Model, ids: Sequence[Ints], index: Sequence[Ints], shared: int) -> Tensor:
    """All sequences, in as few calls as are exact for the model."""
    if len(ids) == 1 or model.paths.batching == "padded":
        return _padded(model, ids, index, shared)
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(ids):
        groups.setdefault(len(one) if model.paths.batching == "of one length" else -1 - row, []).append(row)
    found: dict[int, Tensor] = {}
    for rows in groups.values():
        states = _padded(model, [ids[row] for row in rows], [index[row] for row in rows], 0)
        found |= dict(zip(rows, states.split([len(index[row]) for row in rows]), strict=True))
    return torch.cat([found[row] for row in range(len(ids))])


def _padded(model: Model, ids: Sequence[Ints], index: Sequence[Ints], shared: int) -> Tensor:
    """One batch, padded on the right, which needs no attention mask: a causal model never looks at what comes later."""
    longest = max(len(one) for one in ids)
    padded = np.zeros((len(ids), longest), dtype=np.int64)
    places = []
    for row, (one, at) in enumerate(zip(ids, index, strict=True)):
        padded[row, : len(one)] = one
        places.append(row * (longest - shared) + at - shared)
    hidden = model.hidden(torch.from_numpy(padded).to(model.device), shared)
    flat = torch.from_numpy(np.concatenate(places)).to(hidden.device)
    return hidden.flatten(0, 1).index_select(0, flat)
