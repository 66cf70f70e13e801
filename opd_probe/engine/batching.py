"""Which rollouts go through the models together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MAX_PADDING = 0.1
"""The largest share of a batch's tokens that may be padding."""

SHARING_PAYS = 0.25
"""The share of a batch's tokens that a prompt computed once must save. Behind a cache attention looks at a rectangle in
place of a triangle, which eats smaller savings."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that go through the layers together.

    Attributes:
        members: their indices.
        shared: how many tokens at the start all members have in common and are computed once.
    """

    members: list[int]
    shared: int = 0


def plan_batches(lengths: Sequence[int], prompts: Sequence[tuple[Hashable, int]], batch_tokens: int) -> list[Batch]:
    """Batches of all sequences, those with the longest sequences first; prompts are computed once where that pays.

    Args:
        lengths: tokens of each sequence.
        prompts: for each sequence what tells its prompt from others, and how many of its tokens can be shared.

    Returns:
        Every index once.
    """
    families: dict[Hashable, list[int]] = {}
    for index, (prompt, _) in enumerate(prompts):
        families.setdefault(prompt, []).append(index)
    planned: list[Batch] = []
    alone: list[int] = []
    for family in families.values():
        shared = prompts[family[0]][1]
        for members in _grouped(family, lengths, batch_tokens):
            saved = (len(members) - 1) * shared
            if saved >= SHARING_PAYS * sum(lengths[index] for index in members):
                planned.append(Batch(members, shared))
            else:
                alone += members
    planned += [Batch(members) for members in _grouped(sorted(alone), lengths, batch_tokens)]
    return sorted(planned, key=lambda batch: -max(lengths[index] for index in batch.members))


def _grouped(indices: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Some of the sequences in batches."""
    return [[indices[i] for i in group] for group in batches([lengths[i] for i in indices], batch_tokens)]


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
