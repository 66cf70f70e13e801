"""Base models that several adapters go on: read once, and given to each adapter as a model of its own."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from opd_probe.models.checkpoints import format_of, resolve_checkpoint
from opd_probe.models.hub import home_of, localized
from opd_probe.models.quantised import quantisation_of_model
from opd_probe.stats.contents import contents
from opd_probe.types import Checkpoint

State = list[tuple[str, int, int, int]]
"""Files with their sizes, times of change and inodes."""


@dataclass
class _Base:
    about: tuple[object, ...]
    state: State
    model: PreTrainedModel
    marks: list[bytes]


class Bases:
    """Keeps the base model of adapters for as long as others on it are to come.

    Every adapter gets modules of its own, whose large weights are those of the kept model: no byte of them is copied.
    What an adapter puts in place of a weight it puts into its own modules. Weights are never given again once anything
    was written into them, nor when the base's files have changed: it is read anew then, as without this class.
    """

    def __init__(self) -> None:
        self._to_come: Counter[str] = Counter()
        self._kept: dict[str, _Base] = {}

    def expect(self, bases: Iterable[str | None]) -> None:
        """Say which bases will be asked for, each as often as it will be."""
        self._to_come.update(base for base in bases if base is not None)

    def passed(self, base: str | None) -> None:
        """Say that a base was asked for, or will not be after all; what nobody else expects is let go."""
        if base is not None:
            self._to_come[base] -= 1
            if self._to_come[base] <= 0:
                self._kept.pop(base, None)

    def model(
        self, name: str, local: Checkpoint, how: tuple[object, ...], read: Callable[[], PreTrainedModel]
    ) -> PreTrainedModel:
        """A base model that may be changed.

        Args:
            name: the base as adapters name it.
            local: where it is on this machine.
            how: it is read: type, device and whether foreign code runs.
            read: reads it.
        """
        if self._to_come[name] <= 1 and name not in self._kept:
            return read()
        try:
            about, state = (local, *how), _state_of(local)
        except OSError:
            return read()  # which will say what is wrong
        kept = self._kept.pop(name, None)
        if kept is None or (kept.about, kept.state) != (about, state) or _marks(kept.model) != kept.marks:
            del kept
            model = read()
            if not _can_be_shared(model):
                return model
            kept = _Base(about, state, model, _marks(model))
        try:
            shared = sharing(kept.model)
        except (TypeError, RuntimeError, ValueError):  # a model with something in it that cannot be copied
            return kept.model
        self._kept[name] = kept
        return shared


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same large weights, in parameters of its own; all else is copied."""
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.ndim > 1:
            same = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            same.__dict__.update(parameter.__dict__)
            known[id(parameter)] = same
    return copy.deepcopy(model, known)


def _can_be_shared(model: PreTrainedModel) -> bool:
    """Not what is packed, offloaded or spread: its weights are more than plain parameters."""
    plain = all(type(one) is nn.Parameter and not one.is_meta and not one.is_inference() for one in model.parameters())
    return plain and quantisation_of_model(model) is None and not hasattr(model, "hf_device_map")


def _marks(model: PreTrainedModel) -> list[bytes]:
    """A number over all bytes of each weight, which changes when the weight does. What torch counts as a write may have
    left every byte as it was."""
    return [contents(parameter.detach()) for parameter in model.parameters()]


def _state_of(checkpoint: Checkpoint) -> State:
    """What changes when a checkpoint's files do."""
    local = localized(checkpoint)
    files = set(format_of(local).weight_files(Path(local.path)))
    for place in (Path(local.path), home_of(local)):
        files |= {file for file in place.iterdir() if file.is_file()} if place.is_dir() else {place}
    states = [(str(file), file.stat()) for file in sorted(files)]
    found = [(name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in states]
    return found + (_state_of(resolve_checkpoint(local.base)) if local.base is not None else [])
