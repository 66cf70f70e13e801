"""Responses that grow together: room is taken by tokens that exist, and one that ends makes room for the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.models.continuation import Continuation, one_length
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
    """Grows as many responses together as fit. Where sequences of a model may join others that have begun, a response
    that ends makes room for the next at once; where not, those that began together make room when all have ended.

    Args:
        bound: tokens, padding included, that may be held; a single response may be longer.
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
        self.joins = student.length_factors is None and student.cache_for("joined") is not None
        self.eos = set(student.eos_ids)
        self.live: list[D] = []
        self.waiting: deque[D] = deque()
        self.back: deque[D] = deque()  # begun, and let go of for want of room
        self.growing: Continuation | None = None
        self.read: tuple[int, Continuation] | None = None  # a prompt that more responses are to come of
        self.ended, self.ended_tokens = 0, 0

    @cached_property
    def apart(self) -> bool:
        """Whether sequences of several lengths cannot grow together."""
        return not self.joins and one_length(self.student)

    @torch.inference_mode()
    def run(self, todo: Sequence[D], finished: Callable[[Sequence[D]], None]) -> None:
        """Fill the drafts; ``finished`` hears which came to their end."""
        # Long prompts first: the longest is read while nothing else is held.
        self.waiting = deque(sorted(todo, key=lambda draft: -len(self._tokens(draft))))
        while self.waiting or self.back or self.live:
            self._admit()
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
            if self.joins:
                self.growing.trim()
            tokens, self.live = tokens[torch.tensor(stay, device=tokens.device)], [self.live[index] for index in stay]
        self.growing.append(tokens)

    def _tokens(self, draft: D) -> list[int]:
        return [*(self.prompts[draft.prompt].ids or ()), *draft.ids]

    def _admit(self) -> None:
        """Take in what fits, when it is worth it."""
        if self.live and not self.joins:
            return
        again, fresh = self._fitting()
        chosen = again + fresh
        if self.live and (self.back or self.waiting) and len(chosen) * _SHARE < len(self.live) + len(chosen):
            self.back.extendleft(reversed(again))
            self.waiting.extendleft(reversed(fresh))
            return
        if again and not self.joins:
            groups = [self._begin(chosen)]
        else:
            groups = [*([self._begin(again)] if again else []), *self._groups(fresh)]
        for group in groups:
            if self.growing is None:
                self.growing = group
            else:
                self.growing.join(group)
        self.live += chosen

    def _fitting(self) -> tuple[list[D], list[D]]:
        """What there is room for, taken out of those that went back and those that wait."""
        width = 0 if self.growing is None else self.growing.width
        length = self.ended_tokens // self.ended if self.ended else min(_GUESS, self.max_new_tokens)
        # Those that are there are on their way, on average half of it; those that begin together have it before them.
        growth = length // 2 if self.joins else length
        taken: tuple[list[D], list[D]] = ([], [])
        rows = len(self.live)
        for source, some in zip((self.back, self.waiting), taken, strict=True):
            while source:
                length = len(self._tokens(source[0]))
                wider = max(width, length)
                if rows and ((rows + 1) * (wider + growth) > self.bound or (length != width and self.apart)):
                    break
                some.append(source.popleft())
                rows, width = rows + 1, wider
        again, fresh = taken
        if fresh and not self.joins:
            kept = self._whole_families(again, fresh)
            self.waiting.extendleft(reversed(fresh[kept:]))
            fresh = fresh[:kept]
        return again, fresh

    def _whole_families(self, again: list[D], fresh: list[D]) -> int:
        """How many of the first may begin together so that a prompt is read once, where none can join them later."""
        first, last = fresh[0].prompt, fresh[-1].prompt
        if self.read is not None and self.read[0] == first and not again:
            return _of(first, fresh)
        part = _of(last, fresh[::-1]) if _of(last, self.waiting) else 0
        return len(fresh) if part == len(fresh) and not again else len(fresh) - part

    def _groups(self, chosen: list[D]) -> list[Continuation]:
        """The chosen in their order, read: each prompt once, also when its responses come in at different times."""
        groups = []
        if self.read is not None and (known := _of(self.read[0], chosen)):
            groups.append(self.read[1].repeated(known))
            chosen = chosen[known:]
        if not chosen:
            return groups
        last = chosen[-1].prompt
        if more := _of(last, chosen[::-1]) if _of(last, self.waiting) else 0:
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
        return Continuation(self.student, members, rows, self.rule, joining=self.joins)


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
