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
class Side:
    """What one of the models reads of each rollout, or what both read.

    Attributes:
        lengths: tokens of each sequence.
        prompts: for each sequence what tells its prompt from others, and how many of its tokens can be shared.
    """

    lengths: Sequence[int]
    prompts: Sequence[tuple[Hashable, int]]

    def shared(self, members: Sequence[int]) -> int:
        """How many tokens at the start to compute once for these sequences; 0 where their prompts differ or it does
        not pay."""
        prompt = self.prompts[members[0]]
        if any(self.prompts[index] != prompt for index in members[1:]):
            return 0
        saved = (len(members) - 1) * prompt[1]
        return prompt[1] if saved >= SHARING_PAYS * sum(self.lengths[index] for index in members) else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that go through the layers together.

    Attributes:
        members: their indices.
        shared: for each side, how many tokens at the start all members have in common and are computed once.
    """

    members: list[int]
    shared: tuple[int, ...]


def plan_batches(sides: Sequence[Side], batch_tokens: int) -> list[Batch]:
    """Batches of all sequences, those with the longest sequences first; prompts are computed once where that pays.

    Args:
        sides: one where both models read the same, else the student's and the teacher's. Each keeps to the budget.

    Returns:
        Every index once.
    """
    families: dict[Hashable, list[int]] = {}
    for index, (prompt, _) in enumerate(sides[0].prompts):
        families.setdefault(prompt, []).append(index)
    planned: list[Batch] = []
    alone: list[int] = []
    for family in families.values():
        for members in _grouped(family, sides, batch_tokens):
            shared = tuple(side.shared(members) for side in sides)
            if any(shared):
                planned.append(Batch(members, shared))
            else:
                alone += members
    nothing = (0,) * len(sides)
    planned += [Batch(members, nothing) for members in _grouped(sorted(alone), sides, batch_tokens)]
    return sorted(planned, key=lambda batch: -max(side.lengths[index] for side in sides for index in batch.members))


def _grouped(indices: Sequence[int], sides: Sequence[Side], batch_tokens: int) -> list[list[int]]:
    """Some of the sequences in batches."""
    lengths = [[side.lengths[index] for index in indices] for side in sides]
    return [[indices[i] for i in group] for group in batches(lengths, batch_tokens)]


def batches(lengths: Sequence[Sequence[int]], batch_tokens: int, max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Group sequences into right-padded batches, longest first.

    A batch holds at most ``batch_tokens`` tokens on each side, padding included, and wastes at most ``max_padding`` of
    what all sides hold; a sequence longer than the budget is a batch of its own. Longest first, a run that does not
    fit into memory fails at once and not after an hour.

    Args:
        lengths: for each side, tokens of each sequence.

    Returns:
        Lists of indices of sequences. Equal lengths keep their order.
    """
    rows = list(zip(*lengths, strict=True))
    groups: list[list[int]] = []
    used = 0
    longest: tuple[int, ...] = ()
    for index in sorted(range(len(rows)), key=lambda index: -max(rows[index])):
        if groups:
            count = len(groups[-1]) + 1
            padded = [count * max(pair) for pair in zip(longest, rows[index], strict=True)]
            if max(padded) <= batch_tokens and used + sum(rows[index]) >= (1 - max_padding) * sum(padded):
                groups[-1].append(index)
                used += sum(rows[index])
                longest = tuple(tokens // count for tokens in padded)
                continue
        groups.append([index])
        used, longest = sum(rows[index]), rows[index]
    return groups
