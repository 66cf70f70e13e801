"""Sampling in which a response that ends makes room for the next at once, and memory is taken by tokens that exist."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.models.continuation import Continuation
from opd_probe.models.loading import LoadedModel
from opd_probe.types import LengthRule, Prompt

_GUESS = 256
"""Tokens that a response is taken to become long while none has ended; afterwards what they were on average."""

_SHARE = 8
"""Others join when a part of so many of the rows is free: to join costs about as much as a token of all."""


class Draft(Protocol):
    """A response in the making."""

    prompt: int
    uniforms: NDArray[np.float64]
    ids: list[int]
    logprobs: list[float]
    stopped: bool


D = TypeVar("D", bound=Draft)


class Filling(Generic[D]):
    """Grows as many responses together as fit, of a model whose sequences may join others that have begun.

    Args:
        bound: tokens, padding included, that the cache may hold; a single response may be longer.
        draw: tokens [B] and their log-probabilities [B] at hidden states [B, d] and uniform numbers [B].
    """

    def __init__(
        self,
        student: LoadedModel,
        prompts: Sequence[Prompt],
        rule: LengthRule,
        bound: int,
        max_new_tokens: int,
        draw: Callable[[list[D], Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.student, self.prompts, self.rule, self.bound = student, prompts, rule, bound
        self.max_new_tokens, self.draw = max_new_tokens, draw
        self.eos = set(student.eos_ids)
        self.live: list[D] = []
        self.back: deque[D] = deque()  # begun, and let go of for want of room
        self.growing: Continuation | None = None
        self.read: tuple[int, Continuation] | None = None  # a prompt that more responses are to come of
        self.ended, self.ended_tokens = 0, 0

    @torch.inference_mode()
    def run(self, todo: Sequence[D], finished: Callable[[Sequence[D]], None]) -> None:
        """Fill the drafts; ``finished`` hears which came to their end."""
        # Long prompts first, as in batches: the longest is read while nothing else is held.
        waiting = deque(sorted(todo, key=lambda draft: -len(self._tokens(draft))))
        while waiting or self.back or self.live:
            self._admit(waiting)
            assert self.growing is not None
            at = [draft.uniforms[len(draft.ids)] for draft in self.live]
            uniforms = torch.tensor(at, dtype=torch.float64, device=self.growing.hidden.device)
            tokens, logprobs = self.draw(self.live, self.growing.hidden, uniforms)
            take(self.live, tokens, logprobs, self.eos)
            over = [draft.stopped or len(draft.ids) == self.max_new_tokens for draft in self.live]
            if any(over):
                gone = [draft for draft, ends in zip(self.live, over, strict=True) if ends]
                self.ended += len(gone)
                self.ended_tokens += sum(len(draft.ids) for draft in gone)
                finished(gone)
            stay = [index for index, ends in enumerate(over) if not ends]
            # Those that have least go back when there is no more room, and are read again later.
            while len(stay) > 1 and len(stay) * (self.growing.width + 1) > self.bound:
                least = min(stay, key=lambda index: (len(self.live[index].ids), -index))
                stay.remove(least)
                self.back.appendleft(self.live[least])
            self._keep(stay, tokens)

    def _keep(self, stay: list[int], tokens: Tensor) -> None:
        assert self.growing is not None
        if not stay:
            self.live, self.growing = [], None
            return
        if len(stay) < len(self.live):
            stay = _closed_up(stay)
            self.growing.keep(stay)
            self.growing.trim()
            tokens, self.live = tokens[torch.tensor(stay, device=tokens.device)], [self.live[index] for index in stay]
        self.growing.append(tokens)

    def _tokens(self, draft: D) -> list[int]:
        return [*(self.prompts[draft.prompt].ids or ()), *draft.ids]

    def _admit(self, waiting: deque[D]) -> None:
        """Take in what fits, when it is worth it."""
        width = 0 if self.growing is None else self.growing.width
        length = self.ended_tokens // self.ended if self.ended else min(_GUESS, self.max_new_tokens)
        growth = length // 2  # those that are there are on their way, on average half of it
        again: list[D] = []
        fresh: list[D] = []
        rows = len(self.live)
        for source, taken in ((self.back, again), (waiting, fresh)):
            while source:
                wider = max(width, len(self._tokens(source[0])))
                if rows and (rows + 1) * (wider + growth) > self.bound:
                    break
                taken.append(source.popleft())
                rows, width = rows + 1, wider
        chosen = again + fresh
        if self.live and (self.back or waiting) and len(chosen) * _SHARE < rows:
            self.back.extendleft(reversed(again))
            waiting.extendleft(reversed(fresh))
            return
        for group in [*([self._begin(again)] if again else []), *self._groups(fresh, waiting)]:
            if self.growing is None:
                self.growing = group
            else:
                self.growing.join(group)
        self.live += chosen

    def _groups(self, chosen: list[D], waiting: deque[D]) -> list[Continuation]:
        """The chosen in their order, read: each prompt once, also when its responses come in at different times."""
        groups = []
        if self.read is not None and (known := _of(self.read[0], chosen)):
            groups.append(self.read[1].repeated(known))
            chosen = chosen[known:]
        if not chosen:
            return groups
        last = chosen[-1].prompt
        if more := _of(last, chosen[::-1]) if _of(last, waiting) else 0:
            self.read = last, self._begin(chosen[-1:])
            if len(chosen) > more:
                groups.append(self._begin(chosen[:-more]))
            return [*groups, self.read[1].repeated(more)]
        return [*groups, self._begin(chosen)]

    def _begin(self, drafts: Sequence[D]) -> Continuation:
        texts = [tuple(self._tokens(draft)) for draft in drafts]
        members = list(dict.fromkeys(texts))
        places = {text: row for row, text in enumerate(members)}
        rows = [places[text] for text in texts]
        return Continuation(self.student, members, rows, self.rule, joining=True)


def _closed_up(rows: list[int]) -> list[int]:
    """The same rows in an order in which most keep their place: the last ones fill the gaps."""
    places, behind = range(len(rows)), [row for row in rows if row >= len(rows)]
    here = set(rows)
    return [place if place in here else behind.pop() for place in places]


def take(drafts: Sequence[Draft], tokens: Tensor, logprobs: Tensor, eos: set[int]) -> None:
    """Add a token [B] and its log-probability [B] to each draft."""
    for draft, token, logprob in zip(drafts, tokens.tolist(), logprobs.tolist(), strict=True):
        draft.ids.append(token)
        draft.logprobs.append(logprob)
        draft.stopped = token in eos


def _of(prompt: int, drafts: Iterable[Draft]) -> int:
    """How many of the first drafts are of a prompt."""
    return sum(1 for _ in takewhile(lambda draft: draft.prompt == prompt, drafts))
