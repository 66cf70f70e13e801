"""Which rollouts go through the models together."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.1
"""The largest share of a batch's tokens that may be padding."""


def batches(lengths: Sequence[int], batch_tokens: int, max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Group sequences into right-padded batches, longest first.

    A batch holds at most ``batch_tokens`` tokens, padding included, and wastes at most ``max_padding`` of them;
    a sequence longer than the budget is a batch of its own. Longest first, a run that does not fit into memory
    fails at once and not after an hour.

    Args:
        lengths: tokens of each sequence.

    Returns:
        Lists of indices into ``lengths``. Equal lengths keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    used = 0
    for index in order:
        if groups:
            longest = lengths[groups[-1][0]]
            padded = (len(groups[-1]) + 1) * longest
            if padded <= batch_tokens and used + lengths[index] >= (1 - max_padding) * padded:
                groups[-1].append(index)
                used += lengths[index]
                continue
        groups.append([index])
        used = lengths[index]
    return groups
