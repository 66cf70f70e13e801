"""Exact top-k over a vocabulary, ties to the lower id."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Ids per block. The k-th largest block maximum bounds the k-th logit from below, so k blocks hold the top k."""

_LOW = 0xFFFFFFFF

NO_ID = -1
"""In place of an id at the end of a top list, where no id of probability above 0 is left."""

NO_PROBABILITY = 1e4
"""An id whose logit lies this far below the largest of its state has probability 0: −inf, or what is written in its
place to ban an id (the smallest float16, −65,504; −1e9; the smallest float32). Logits of models are a few dozen apart,
at a temperature of 0.01 a few thousand. The rule looks at logits before the division by a temperature, as ranks do."""


def _sort_keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 keys whose descending order is (value descending, id ascending); no two keys are equal.

    Comparing keys instead of values makes the result independent of how a sort treats ties.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0, which equals 0.0, into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement order of IEEE floats
    return (ordered.to(torch.int64) << 32) + (_LOW - ids)


def _top_ids(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """The ids of the k largest values of each row, in rank order, equal values by ascending id: [T, k].

    Args:
        values: float32 [T, m]. ids: int64 [T, m] or [m], distinct within a row.
    """
    ids = ids.expand(values.shape)
    within = min(k + 1, values.shape[-1])
    top, place = torch.topk(values, within, dim=-1, sorted=True)
    result = torch.gather(ids, 1, place[:, :k])
    # How topk breaks ties is not defined. Rows where a tie could matter, rare in float32, are done by unique keys.
    tied = (top[:, 1:] == top[:, :-1]).any(-1)
    if bool(tied.any()):
        rows = torch.nonzero(tied).flatten()
        keys = torch.topk(_sort_keys(values[rows], ids[rows]), k, dim=-1, sorted=True).values
        result[rows] = _LOW - (keys & _LOW)
    return result


def top_list(logits: Tensor, k: int, maxima: Tensor) -> Tensor:
    """The k most probable ids in rank order, as :func:`exact_topk`, without ids of probability 0.

    Args:
        logits: float32 [T, V] without NaN or +inf, some finite in each row.
        maxima: what :func:`block_maxima` gave for them.

    Returns:
        int64 [T, k]; :data:`NO_ID` at the end of a row with fewer than k ids above :data:`NO_PROBABILITY`.
    """
    ids = exact_topk(logits, k, maxima)
    below = torch.gather(logits, 1, ids) - maxima.amax(-1, keepdim=True)
    return ids.masked_fill_(below <= -NO_PROBABILITY, NO_ID)


def _values_of(logits: Tensor, blocks: Tensor, ids: Tensor) -> Tensor:
    """The logits of whole blocks [T, m], whose ids are [T, m · BLOCK]."""
    states, apart = len(logits), logits.stride(0)
    if apart % BLOCK or logits.stride(1) != 1 or states < 2:
        return torch.gather(logits, 1, ids)
    # All rows are one table of blocks, which are copied as they lie.
    table = logits.as_strided(((states - 1) * (apart // BLOCK) + logits.shape[1] // BLOCK, BLOCK), (BLOCK, 1))
    first = torch.arange(states, device=logits.device).unsqueeze(1) * (apart // BLOCK)
    return table.index_select(0, (blocks + first).flatten()).view(ids.shape)


def block_maxima(logits: Tensor) -> Tensor:
    """The maximum of each run of :data:`BLOCK` ids: [..., V] -> [..., ceil(V / BLOCK)], NaN where one is NaN."""
    width = logits.shape[-1]
    whole = width // BLOCK * BLOCK
    maxima: Tensor = logits[..., :whole].unflatten(-1, (whole // BLOCK, BLOCK)).amax(-1)
    if whole == width:
        return maxima
    return torch.cat([maxima, logits[..., whole:].amax(-1, keepdim=True)], dim=-1)


def exact_topk(logits: Tensor, k: int, maxima: Tensor | None = None) -> Tensor:
    """The ids of the k largest logits in rank order; among equal logits the lower id comes first.

    Looks only into the k blocks with the largest maxima: an id outside them has k ids ahead of it, one at
    least in each of those blocks (blocks of equal maximum are taken in id order, so this holds for ties too).

    Args:
        logits: float32 [T, V] without NaN.
        k: 1 <= k <= V.
        maxima: what :func:`block_maxima` gave for ``logits``, when it is at hand.

    Returns:
        int64 [T, k].
    """
    width = logits.shape[-1]
    all_ids = torch.arange(width, device=logits.device)
    if width <= 2 * k * BLOCK:
        return _top_ids(logits, all_ids, k)
    maxima = block_maxima(logits) if maxima is None else maxima
    whole = width // BLOCK
    # One block more than needed: of 64 (k + 1) values torch.topk finds k + 1 in a way that takes half the time.
    blocks = _top_ids(maxima[:, :whole], all_ids[:whole], k + 1)
    candidates = (blocks.unsqueeze(-1) * BLOCK + all_ids[:BLOCK]).flatten(1)
    values = _values_of(logits, blocks, candidates)
    if width % BLOCK:  # a short last block is looked into always
        values = torch.cat([values, logits[:, whole * BLOCK :]], dim=1)
        candidates = torch.cat([candidates, all_ids[whole * BLOCK :].expand(len(logits), -1)], dim=1)
    return _top_ids(values, candidates, k)
