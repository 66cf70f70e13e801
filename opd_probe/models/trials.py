"""A model tried on two short sequences: which ways of calling it are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from opd_probe.errors import InputError, OutOfMemoryError, is_refused_allocation
from opd_probe.models.bodies import (
    CACHINGS,
    Body,
    Caching,
    Kind,
    Past,
    last_of_prompts,
    multiplies_integers,
    next_tokens,
    own_logits,
    rounding_of,
)
from opd_probe.models.guards import brief
from opd_probe.models.joining import joined, joined_mask, trim
from opd_probe.models.lengths import LengthFactors
from opd_probe.models.placement import input_embeddings
from opd_probe.models.readout import OutputLayer, given_logits, measured_layer, stated_layer
from opd_probe.models.ties import TieWatch, undecided
from opd_probe.models.trial_ids import SHORTEST, trial_sequences

Batching = Literal["padded", "of one length", "alone"]
"""How sequences may go through a model together: padded on the right, without padding, or not at all."""

_STEPS, _COMPARED = 2, 4
"""Tokens that are sampled in a trial, and states whose logits are compared over the whole vocabulary, where the
configuration makes nothing short."""

_COLUMNS = 256
"""Ids whose logits are compared, of those of a layer of our own."""

_EXACT = 1e-5
"""Differences of logits below which two paths are the same, whatever rounding does to the model."""

_NOISES = 10.0
"""How many times what rounding alone does to a model two paths may differ, in coarse types up to _WRONG."""

_FINE = 3e-6
"""In float32 they may differ by as much of the largest logit at most: cheap paths are not worth more."""

_QUIET = 2e-5
"""What rounding may do to the logits of a small model for paths that differ in it to be trusted at every state."""

_SMALL = 10_000_000
"""Parameters of a model that is small enough for the dearest path, so that nothing is given for a cheap one."""

_LEAK = 1e-4
"""The share of the largest logit above which, in float32, a change of what comes before is no rounding."""

_WRONG = 0.1
"""A share of what lies between the logits of different states; paths that differ by more are never the same."""


@dataclass
class Paths:
    """What is known of one model object.

    Attributes:
        kind: how its body is called.
        scale, softcap: of its output layer, None when its own logits are used.
        batching: how sequences go together.
        decided: False for a model that attends to the best few of what it has read and has equal scores among them:
            what it says of a prefix may change when the prefix goes on, so that a replay reads whole rollouts and the
            sampler whole prefixes, and no cache is used.
        verdicts: of what a job may or may not ask for, by name: the caching with which it is exact, or None.
    """

    kind: Kind = "decoder"
    scale: float | None = 1.0
    softcap: float | None = None
    batching: Batching = "padded"
    decided: bool = True
    verdicts: dict[str, Caching | None] = field(default_factory=dict)


@contextmanager
def _in_one_line(model: Any, name: str) -> Iterator[None]:
    """Whatever the model's own forward raises on a short sequence, in one line."""
    try:
        yield
    except Exception as error:  # models raise what they like
        _raise_out_of_memory(error, name)
        raise InputError(
            f"model {name} ({type(model).__name__}): cannot be replayed ({type(error).__name__}: {brief(error)})"
        ) from None


def _raise_out_of_memory(error: Exception, name: str) -> None:
    if is_refused_allocation(error):
        raise OutOfMemoryError(f"out of memory with {name}; try --dtype bfloat16") from None


class Trial:
    """Tries a model on two short sequences that begin alike.

    Attributes:
        finite: whether its logits are finite; of a broken model nothing can be compared.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.finite, self.undecided = True, False
        self.epsilon = rounding_of(model)
        self.small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL
        self.coarse = self.epsilon > torch.finfo(torch.float32).eps
        self.factors = LengthFactors.of(model)
        self._noise: Tensor | None = None
        one, other = trial_sequences(model, self.factors)
        self.length, self.alike = one.shape[1], one.shape[1] // 3
        self.one = one
        self.other = torch.cat([one[:, : self.alike], other[:, self.alike :]], dim=1)

    @torch.inference_mode()
    def paths(self) -> tuple[Paths, OutputLayer]:
        """How to have the model's logits, of what sequences together.

        Raises:
            InputError: see :func:`paths_of`.
        """
        with self._short():
            paths, layer = self._readout()
            if self.finite:
                self._use(paths, layer)
                paths.batching = self._check_causal()
                paths.decided = not self.undecided
                if multiplies_integers(self.model):  # alone and whole, as the noise that is allowed for would hide it
                    paths.batching, paths.decided = "alone", False
        return paths, layer

    @torch.inference_mode()
    def verdict(self, paths: Paths, layer: OutputLayer, what: str) -> Caching | None:
        """Whether a cached path is exact, and how.

        Args:
            what: ``shared``, ``pieces``, ``padded prompts``, ``prompts of one length`` or ``joined``.
        """
        tries: dict[str, Callable[[Caching], list[tuple[Tensor, Tensor]]]] = {
            "shared": self._shared,
            "pieces": self._pieces,
            "padded prompts": self._padded_prompts,
            "prompts of one length": self._equal_prompts,
            "joined": self._joined,
        }
        if not paths.decided:
            return None
        self._use(paths, layer)
        with self._short():
            self.alone = self.body(self.one)[0], self.body(self.other)[0]
            for how in CACHINGS:
                try:
                    pairs = tries[what](how)
                except Exception as error:  # whatever stops a path makes it one that is not taken
                    _raise_out_of_memory(error, self.name)
                    continue
                if self._all_same(pairs):
                    return how
        return None

    def _all_same(self, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether all states are the same; in coarse types, where that is judged by the median, the later half of each
        sequence by itself too: a cache is wrong behind its first piece alone."""
        if not self._same(torch.cat([got for got, _ in pairs]), torch.cat([want for _, want in pairs])):
            return False
        later = [(got[len(got) // 2 :], want[len(want) // 2 :]) for got, want in pairs if len(got) >= 2 * _COMPARED]
        return not self.coarse or all(self._same(got, want) for got, want in later)

    @contextmanager
    def _short(self) -> Iterator[None]:
        """Calls of the trial have the factors of short calls, whatever ran before."""
        if self.factors is None:
            yield
            return
        with self.factors.of_length(0):
            yield

    def _use(self, paths: Paths, layer: OutputLayer) -> None:
        self.body = Body(self.model, paths.kind)
        self.layer = layer

    def _readout(self) -> tuple[Paths, OutputLayer]:
        """The cheapest way to the model's own logits."""
        with _in_one_line(self.model, self.name):
            own = own_logits(self.model, self.one)[0]
        if own.dim() != 2:
            raise InputError(f"model {self.name} ({type(self.model).__name__}): gives no logits for each token")
        stated = stated_layer(self.model)
        self.finite = bool(torch.isfinite(own).all())
        if not self.finite:
            if stated is None:
                return Paths("own logits", None), given_logits(own.shape[-1], own)
            return Paths("decoder", stated.scale, stated.softcap), stated
        self.layer = given_logits(own.shape[-1], own)
        self.body = Body(self.model, "own logits")
        for layer in self._layers(stated):
            for kind in ("decoder", "before the output layer"):
                if self._reads(own, kind, layer):
                    return Paths(kind, layer.scale, layer.softcap), layer
        return Paths("own logits", None), self.layer

    def _layers(self, stated: OutputLayer | None) -> Iterator[OutputLayer]:
        if stated is None:
            return
        yield stated
        try:
            measured = measured_layer(self.model, stated, lambda: own_logits(self.model, self.one))
        except Exception as error:  # its outputs cannot be replaced by numbers of ours
            _raise_out_of_memory(error, self.name)
            return
        if measured is not None:
            yield measured

    def _reads(self, own: Tensor, kind: Kind, layer: OutputLayer) -> bool:
        rows = slice(-_COMPARED, None)
        try:
            ours = layer.logits(Body(self.model, kind)(self.one)[0, rows].to(layer.weight.device))
        except Exception as error:  # whatever stops a path makes it one that is not taken
            _raise_out_of_memory(error, self.name)
            return False
        return self._same(ours, own[rows].float(), are_logits=True)

    def _check_causal(self) -> Batching:
        """How sequences may go together, of a model in which nothing changes what came before it.

        Raises:
            InputError: something does.
        """
        with _in_one_line(self.model, self.name):
            with TieWatch() as watched:
                whole = self.body(self.one)[0]
            with TieWatch() as part:
                cut = self.body(self.one[:, : self.alike])[0]
        self.undecided = undecided(watched, part)
        rows = torch.cat([self.other, self.one], dim=0)
        if not self.undecided:
            rows[1, self.alike :] = 0
            if self._agrees(rows, [whole[: self.alike], cut]) and self._kept(cut, whole):
                return "padded"
        with _in_one_line(self.model, self.name):
            changed = self.body(self.other)[0]
        if not bool(
            torch.isfinite(changed).all()
        ):  # weights that are broken here and there: a replay says at which state
            self.finite = False
            return "padded"
        what = f"model {self.name} ({type(self.model).__name__})"
        if not self._kept(changed, whole):
            raise InputError(
                f"{what}: a token changes what the model says of those before it, so that it has no next-token "
                "distribution; expected a causal language model (is_decoder or causal in config.json, where the type "
                "has both)"
            )
        if not self.undecided and not self._kept(cut, whole):
            raise InputError(
                f"{what}: says something else of a prefix when it goes on, though no later token changes it; expected "
                "a causal language model"
            )
        rows = torch.cat([self.one, self.other])
        return "of one length" if self._agrees(rows, [whole, changed]) else "alone"

    def _kept(self, some: Tensor, whole: Tensor) -> bool:
        """Whether the tokens that both sequences begin with are the same states in both."""
        return self._same(some[: self.alike], whole[: self.alike], fine=_LEAK)

    def _agrees(self, rows: Tensor, want: list[Tensor]) -> bool:
        try:
            together = self.body(rows)
        except Exception as error:  # whatever stops a path makes it one that is not taken
            _raise_out_of_memory(error, self.name)
            return False
        got = [row[: len(alone)] for row, alone in zip(together, want, strict=True)]
        return self._same(torch.cat(got), torch.cat(want))

    def _shared(self, how: Caching) -> list[tuple[Tensor, Tensor]]:
        past, start = Past(how), self.alike - 1
        self.body(self.one[:, :start], past)
        past.select(torch.tensor([0, 0]))
        rest = torch.cat([self.one, self.other])[:, start:]
        middle = rest.shape[1] // 2
        got = torch.cat([self.body(part, past) for part in (rest[:, :middle], rest[:, middle:])], dim=1)
        return [(row, alone[start:]) for row, alone in zip(got, self.alone, strict=True)]

    def _pieces(self, how: Caching) -> list[tuple[Tensor, Tensor]]:
        past, both = Past(how), torch.cat([self.one, self.other])
        size = max(2, self.length // 4)
        got = torch.cat([self.body(piece, past) for piece in both.split(size, dim=1)], dim=1)
        return list(zip(got, self.alone, strict=True))

    def _padded_prompts(self, how: Caching) -> list[tuple[Tensor, Tensor]]:
        return self._sampled(how, self.alike, self.alike + 3)

    def _equal_prompts(self, how: Caching) -> list[tuple[Tensor, Tensor]]:
        return self._sampled(how, self.alike + 2, self.alike + 2)

    def _sampled(self, how: Caching, short: int, long: int) -> list[tuple[Tensor, Tensor]]:
        """Prompts of two lengths, the first sampled from twice and let go of once, token by token."""
        past, prompts = Past(how), torch.cat([self.one, self.other])[:, :long].clone()
        mask: Tensor | None = None
        if short < long:
            mask = torch.ones_like(prompts)
            prompts[0, long - short :], prompts[0, : long - short] = self.one[0, :short], 0
            mask[0, : long - short] = 0
        got = [last_of_prompts(self.body, prompts, mask, past)]
        past.select(torch.tensor([0, 0, 1]))
        mask = None if mask is None else mask[torch.tensor([0, 0, 1])]
        starts, rows = [short, short, long], [self.one, self.one, self.other]
        wants = [torch.stack([self.alone[0][short - 1], self.alone[1][long - 1]])]
        steps = self.length - long if self.length > SHORTEST else _STEPS
        for step in range(steps):
            if step == 1:
                past.select(torch.tensor([1, 2]))
                mask = None if mask is None else mask[1:]
                starts, rows = starts[1:], rows[1:]
            new = torch.cat([row[:, start + step] for row, start in zip(rows, starts, strict=True)])
            hidden, mask = next_tokens(self.body, new, mask, past)
            got.append(hidden)
            alone = {id(self.one): self.alone[0], id(self.other): self.alone[1]}
            wants.append(torch.stack([alone[id(row)][start + step] for row, start in zip(rows, starts, strict=True)]))
        return list(zip(got, wants, strict=True))

    def _joined(self, how: Caching) -> list[tuple[Tensor, Tensor]]:
        """Sequences that others join as they grow, longer ones and shorter ones, and leave."""
        both = {0: (self.one, self.alone[0]), 1: (self.other, self.alone[1])}
        past, mask, rows = Past(how), None, [(0, self.alike)]  # of each row the sequence, and how much of it is read
        got = [last_of_prompts(self.body, self.one[:, : self.alike], None, past)]
        wants = [self.alone[0][None, self.alike - 1]]

        def step() -> None:
            nonlocal mask, rows
            new = torch.cat([both[which][0][:, read] for which, read in rows])
            hidden, mask = next_tokens(self.body, new, mask, past)
            got.append(hidden)
            wants.append(torch.stack([both[which][1][read] for which, read in rows]))
            rows = [(which, read + 1) for which, read in rows]

        step()
        for which, length in ((1, self.alike + 3), (0, max(1, self.alike - 1))):
            alone = Past(how)
            got.append(last_of_prompts(self.body, both[which][0][:, :length], None, alone))
            wants.append(both[which][1][None, length - 1])
            mask = joined_mask((past, mask, len(rows)), (alone, None, 1), self.one.device)
            past, rows = joined(past, alone), [*rows, (which, length)]
            step()
        past.select(torch.tensor([0, 2]))
        assert mask is not None
        mask, rows = mask[torch.tensor([0, 2])], [rows[0], rows[2]]
        padded = past.length - max(read for _, read in rows)
        if trim(past, padded):
            mask = mask[:, padded:]
        while max(read for _, read in rows) < self.length:
            step()
        return list(zip(got, wants, strict=True))

    def _same(self, got: Tensor, want: Tensor, *, are_logits: bool = False, fine: float = _FINE) -> bool:
        """Whether outputs [n, d] of two paths are the same states, but for what rounding does to this model."""
        got, want = (values if are_logits else self._logits(values) for values in (got, want))
        if got.shape != want.shape or not bool(torch.isfinite(got).all()):
            return False
        error = self._size((got - want).abs().amax(-1))
        careful = self.small and not self.coarse and not are_logits and fine == _FINE
        if error <= _EXACT:
            return error == 0 or not careful or self._size(self._rounding()) <= _QUIET
        noise = _NOISES * self._size(self._rounding())
        if not self.coarse:
            return not careful and error <= min(noise, fine * float(want.abs().max()))
        return error <= min(noise, _WRONG * float((want[1:] - want[:-1]).abs().amax(-1).median()))

    def _logits(self, values: Tensor) -> Tensor:
        values = values.to(self.layer.weight.device)
        if self.layer.is_given:
            return values.float()
        return self.layer.columns(_COLUMNS).logits(values)

    def _size(self, errors: Tensor) -> float:
        """Of errors at several states the largest; where experts are chosen by coarse numbers some are large, and what
        is wrong is wrong at most of them."""
        return float(errors.median() if self.coarse else errors.max())

    def _rounding(self) -> Tensor:
        """What the last bit of the embeddings does to the logits of each state of the first sequence, [T]."""
        if self._noise is None:
            epsilon = self.epsilon
            generator = torch.Generator().manual_seed(0)

            def jitter(module: Any, args: Any, output: Tensor) -> Tensor:
                del module, args
                signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
                return output * (1 + epsilon * signs)

            alone = self._logits(self.body(self.one)[0])
            embeddings = input_embeddings(self.model)
            if embeddings is None:  # nothing to move: no path may differ by more than float32 does
                self._noise = alone.new_zeros(len(alone))
                return self._noise
            handle = embeddings.register_forward_hook(jitter)
            try:
                moved = self._logits(self.body(self.one)[0])
            finally:
                handle.remove()
            self._noise = (moved - alone).abs().amax(-1)
        return self._noise
