"""What a model says next of sequences that grow token by token: behind a cache where that is exact, else read anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opd_probe.models.bodies import Caching, Past, last_of_prompts, next_tokens
from opd_probe.models.joining import copied, joined, joined_mask, trim
from opd_probe.models.loading import LoadedModel
from opd_probe.types import LengthRule


class Continuation:
    """Sequences in the making, and the inputs of the output layer at their last tokens.

    Args:
        model: loaded.
        prompts: token ids, each once.
        rows: for each sequence its prompt's number.
        rule: whose length decides the factors of a model that has several. A whole that is not there yet cannot decide:
            then the prefix does.
        joining: others may join them later, for a model with which that is exact.

    Attributes:
        hidden: [B, d], at the last token of each sequence, where the output layer is.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        rule: LengthRule = "prefix",
        *,
        joining: bool = False,
    ) -> None:
        self.model = model
        self.rule: LengthRule = "server" if rule == "server" else "prefix"
        self.read = [list(prompts[row]) for row in rows]
        self.caching = model.cache_for("joined") if joining else _caching(model, prompts)
        self.mask: Tensor | None = None
        self.past: Past
        self.hidden = self._begin(prompts, torch.tensor(list(rows)))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the sequences."""
        self.read = [self.read[row] for row in rows]
        if self.caching is None:
            return
        kept = torch.tensor(rows)
        self.past.select(kept)
        self.mask = None if self.mask is None else self.mask[kept.to(self.mask.device)]

    @property
    def width(self) -> int:
        """Columns of what is kept of the sequences, padding included; of those that are read anew, the longest."""
        return max(len(sequence) for sequence in self.read) if self.caching is None else self.past.length

    def repeated(self, times: int) -> Continuation:
        """The only sequence, that many times, to go on by itself; what is here stays as it is."""
        copy = Continuation.__new__(Continuation)
        copy.__dict__.update(self.__dict__, read=[list(self.read[0]) for _ in range(times)])
        rows = torch.zeros(times, dtype=torch.int64)
        if self.caching is not None:
            copy.past = copied(self.past)
            copy.past.select(rows)
            copy.mask = None if self.mask is None else self.mask[rows.to(self.mask.device)]
        copy.hidden = self.hidden[rows.to(self.hidden.device)]
        return copy

    def join(self, other: Continuation) -> None:
        """Let the sequences of another go on with these, behind them; the other is spent."""
        own, theirs = ((one.past, one.mask, len(one.read)) for one in (self, other))
        mask = joined_mask(own, theirs, self.model.device)
        self.mask = None if bool(mask.all()) else mask
        self.past = joined(self.past, other.past)
        self.read += other.read
        self.hidden = torch.cat([self.hidden, other.hidden])

    def trim(self) -> None:
        """Let go of the columns in which all sequences are padded, where the cache allows it."""
        if self.mask is None:
            return
        padded = int((self.mask.amax(0) == 0).sum())
        if padded and trim(self.past, padded):
            mask = self.mask[:, padded:]
            self.mask = None if bool(mask.all()) else mask

    def append(self, tokens: Tensor) -> None:
        """One more token [B] for each sequence."""
        for sequence, token in zip(self.read, tokens.tolist(), strict=True):
            sequence.append(token)
        if self.caching is None or self._key() != self.key:
            self.hidden = self._begin(self.read, torch.arange(len(self.read)))
            return
        tokens = tokens.to(self.model.device)
        with self.model.factors_of(self._length()):
            hidden, self.mask = next_tokens(self.model.body, tokens, self.mask, self.past)
        self.hidden = self._placed(hidden)

    def _begin(self, prompts: Sequence[Sequence[int]], rows: Tensor) -> Tensor:
        """Read whole sequences; behind a cache it holds them afterwards, for the rows that come of them."""
        if self.caching is None:
            whole = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
            last = [np.array([len(one) - 1]) for one in whole]
            hidden = self.model.outputs(whole, last, rule=self.rule)
            return hidden[rows.to(hidden.device)]
        self.past, self.mask, self.key = Past(self.caching), None, self._key()
        longest = max(len(ids) for ids in prompts)
        padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for row, ids in enumerate(prompts):
            padded[row, longest - len(ids) :] = torch.tensor(list(ids))
            mask[row, longest - len(ids) :] = 1
        device = self.model.device
        given = None if bool(mask.all()) else mask.to(device)
        with self.model.factors_of(self._length()):
            hidden = self._placed(last_of_prompts(self.model.body, padded.to(device), given, self.past))
        self.past.select(rows)
        self.mask = None if given is None else given[rows.to(device)]
        return hidden[rows.to(hidden.device)]

    def _placed(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.model.output_layer.weight.device)

    def _length(self) -> int:
        """The length that decides the factors; behind a cache all sequences of a model that has several are alike."""
        factors = self.model.length_factors
        longest = max(len(sequence) for sequence in self.read)
        return longest if factors is None else factors.deciding(self.rule, longest, longest)

    def _key(self) -> tuple[int, ...]:
        factors = self.model.length_factors
        return () if factors is None else factors.key(self._length())


def one_length(model: LoadedModel) -> bool:
    """Whether sequences of several lengths cannot grow together behind a cache: padding on the left changes what this
    model says, or their lengths decide its factors."""
    return model.length_factors is not None or model.cache_for("padded prompts") is None


def _caching(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> Caching | None:
    if len({len(prompt) for prompt in prompts}) > 1:
        return None if model.length_factors is not None else model.cache_for("padded prompts")
    return model.cache_for("prompts of one length")
