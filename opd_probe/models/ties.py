"""Attention to the best few of what was read, and scores among which the best few are not decided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MASKED = -1e30
"""Scores below this are those of what is masked."""


class TieWatch(TorchFunctionMode):
    """Watches what is chosen while a model runs.

    Attributes:
        choices: for each choice of the best few, among how many, and whether that was undecided somewhere: the last
            chosen and the first left out had the very same score, or several had a score of exactly 0, as sums of what
            is cut off at 0 do, so that sooner or later two of them stand there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[tuple[int, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at it when it is a choice."""
        del types
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk):
            self._look(*args, **kwargs)
        return func(*args, **kwargs)

    def _look(self, input: Tensor, k: int, dim: int = -1, largest: bool = True, **others: Any) -> None:
        del others
        scores = input
        count = scores.shape[dim]
        tied = bool(((scores == 0).sum(dim) > 1).any())
        if k < count and not tied:
            best = scores.topk(k + 1, dim, largest=largest).values.narrow(dim, k - 1, 2)
            last, next_one = best.unbind(dim)
            tied = bool(((last == next_one) & (last > _MASKED)).any())
        self.choices.append((count, tied))


def undecided(whole: TieWatch, part: TieWatch) -> bool:
    """Whether a model chooses among what it has read by scores that are equal: then what it chooses depends on how
    much else there is, and two runs on one prefix differ.

    Args:
        whole, part: watched a sequence and the beginning of it. Choices among as many in both are among experts.
    """
    if len(whole.choices) != len(part.choices):
        return any(tied for _, tied in whole.choices)
    pairs = zip(whole.choices, part.choices, strict=True)
    return any(tied for (count, tied), (fewer, _) in pairs if count != fewer)
