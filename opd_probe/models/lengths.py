"""Rotary factors that the length of a call decides: longrope and dynamic scaling.

Such a model is several models: what it says of one prefix depends on how long the call is that the prefix stands in.
Three lengths can be meant (:data:`opd_probe.types.LENGTH_RULES`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.hub import home_of
from opd_probe.models.positions import max_positions
from opd_probe.texts import read_json
from opd_probe.types import LENGTH_RULES, LengthRule


def check_rule(rule: str) -> None:
    """Refuse what is no rule.

    Raises:
        InputError: it is not one of :data:`opd_probe.types.LENGTH_RULES`.
    """
    if rule not in LENGTH_RULES:
        raise InputError(f"length_factors = {rule!r}: expected one of {', '.join(LENGTH_RULES)}")


def has_length_factors(source: Any) -> bool:
    """Whether the factors of a model depend on a length, as far as can be known without loading it: a model in memory,
    a path, a hub id or a checkpoint. Where nothing is known, yes."""
    model = getattr(source, "model", source)
    if hasattr(model, "modules"):
        return LengthFactors.of(model) is not None
    try:
        checkpoint = resolve_checkpoint(source) if isinstance(source, (str, Path)) else source
        files = [home_of(checkpoint) / "config.json"]
        based = has_length_factors(checkpoint.base) if checkpoint.base else False
        stated = [read_json(file) for file in files if file.is_file()]
    except (OpdProbeError, OSError, ValueError):
        return True
    return based or any(map(_states_length, stated)) or (not stated and not checkpoint.base)


def _states_length(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return False
    named = [config.get("rope_type"), config.get("type")]
    return any(_of_length(name) for name in named if isinstance(name, str)) or any(map(_states_length, config.values()))


@dataclass(frozen=True)
class _Rotary:
    module: Any
    kind: str
    boundary: int


def _kinds(given: Any) -> set[str]:
    names = given.values() if isinstance(given, Mapping) else [given]
    return {name for name in names if isinstance(name, str)}


def _of_length(kind: str) -> bool:
    return kind in ("longrope", "su") or "dynamic" in kind


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """The rotary parameters of a configuration, of every kind of layer."""
    stated = getattr(config, "rope_parameters", None) or {}
    return [stated, *(value for value in stated.values() if isinstance(value, Mapping))]


class LengthFactors:
    """The rotary modules of one model whose factors depend on the length of a call.

    Attributes:
        kind: ``longrope``, ``dynamic`` or both.
        boundary: the length up to which the factors are those of short calls.
        longest: tokens that a server is started for.
    """

    def __init__(self, rotaries: list[_Rotary], longest: int) -> None:
        self._rotaries, self.longest = rotaries, longest
        self.kind = " and ".join(sorted({rotary.kind for rotary in rotaries}))
        self.boundary = min(rotary.boundary for rotary in rotaries)

    @classmethod
    def of(cls, model: Any) -> LengthFactors | None:
        """Those of a model; None where no length decides anything."""
        found = []
        for module in model.modules():
            for kind in sorted(_kinds(getattr(module, "rope_type", None))):
                if _of_length(kind) and hasattr(module, "config"):
                    found.append(_Rotary(module, kind, _boundary(module, kind)))
        return cls(found, max_positions(model.config) or 0) if found else None

    def key(self, length: int) -> tuple[int, ...]:
        """What tells apart the factors of calls of different lengths."""
        return tuple(
            0 if length <= rotary.boundary else length if rotary.kind != "longrope" else 1 for rotary in self._rotaries
        )

    def deciding(self, rule: LengthRule, prefix: int, whole: int) -> int:
        """The length that decides the factors of one state, of a prefix of so many tokens of a whole of so many."""
        return {"prefix": prefix, "whole": max(prefix, whole), "server": max(prefix, whole, self.longest)}[rule]

    @contextmanager
    def of_length(self, length: int) -> Iterator[None]:
        """While the block runs, calls have the factors of a call of at least ``length`` tokens, whatever ran before."""
        with ExitStack() as stack:
            for rotary in self._rotaries:
                stack.enter_context(_of_call(rotary, length))
            yield


def _boundary(module: Any, kind: str) -> int:
    stated = [p for p in _parameters(module.config) if p.get("rope_type") == kind] or [{}]
    if kind == "longrope":
        given = [p.get("original_max_position_embeddings") for p in stated]
        given.append(getattr(module.config, "original_max_position_embeddings", None))
        return int(next(value for value in given if value))
    return int(getattr(module, "original_max_seq_len", module.config.max_position_embeddings))


@contextmanager
def _of_call(rotary: _Rotary, length: int) -> Iterator[None]:
    """One more position, at the end of the call whose length is asked for, goes into a rotary module, and what is
    made of it is taken out again. A module that remembers how long earlier calls were is made to forget it."""
    module = rotary.module
    added: list[bool] = []
    forget: list[Callable[[], object]] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        if "dynamic" in rotary.kind:
            x = kwargs["x"] if "x" in kwargs else args[0]
            layer = {name: value for name, value in kwargs.items() if name == "layer_type"}
            start = positions.new_zeros((*positions.shape[:-1], 1))
            forget[:] = [partial(module.forward, x[:, :1], start, **layer)]  # as a call of one token does
            forget[0]()
        longer = length > int(positions.max()) + 1
        added.append(longer)
        if longer:
            end = positions.new_full((*positions.shape[:-1], 1), length - 1)
            positions = torch.cat([positions, end], dim=-1)
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": positions}
        return (args[0], positions, *args[2:]), kwargs

    def after(_: Any, args: Any, output: Any) -> Any:
        del args
        if not added.pop():
            return output
        if isinstance(output, Tensor):
            return output[..., :-1, :]
        return type(output)(part[..., :-1, :] for part in output)

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for reset in forget:
            reset()
