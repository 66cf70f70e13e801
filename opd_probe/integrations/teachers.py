"""Which model the teacher of a trainer is: one apart, or the one in training as another adapter, or none, makes it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from opd_probe.errors import InputError
from opd_probe.models.guards import brief

_EMA_ADAPTER = "teacher"
"""What TRL calls the adapter that follows the student's."""
_SAMPLED = 32
"""Values of a parameter that are looked at, to see whether it moves."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a teacher stands to the student.

    Attributes:
        kind: ``apart``: a model of its own; ``base``: the student without its adapter; ``adapter``: the student with
            another adapter; ``itself``: the student as it is.
        moves: whether training changes its weights, so that no path leads to them.
    """

    kind: Literal["apart", "base", "adapter", "itself"] = "apart"
    moves: bool = False

    @property
    def mark(self) -> str:
        """What a name has behind it, where the teacher is not the model that its path leads to; else empty."""
        return "live" if self.kind == "itself" else "ema" if self.moves else ""


def standing(trainer: Trainer, student: PreTrainedModel, teacher: nn.Module, *, own: bool) -> Standing:
    """How a loaded teacher stands to the student.

    Args:
        student, teacher: as they are inside what a trainer wraps around them.
        own: whether the teacher is the trainer's ``teacher_model``, of which ``teacher_model_kind`` says more.

    Raises:
        InputError: it is made of the weights that train, though not the student's own model.
    """
    kind = getattr(trainer.args, "teacher_model_kind", None) if own else None
    if teacher is student:
        adapted = hasattr(student, "get_base_model")
        if adapted and kind == "base":
            return Standing("base", moves=_base_trains(student))
        return Standing("adapter", moves=True) if adapted and kind == "ema" else Standing("itself", moves=True)
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    if any(id(parameter) in trained for parameter in teacher.parameters()):
        raise InputError(
            f"teacher {type(teacher).__name__}: holds weights of the student that train, so that a model would be "
            "compared with itself; give OverlapCallback a teacher of its own, such as the path of the base"
        )
    followers = [getattr(one, "ref_model", None) for one in trainer.callback_handler.callbacks]
    moves = kind == "ema" or any(one is not None and _inside(trainer, one) is teacher for one in followers)
    return Standing(moves=moves)


def _inside(trainer: Trainer, model: Any) -> Any:
    return trainer.accelerator.unwrap_model(model)


def _base_trains(student: Any) -> bool:
    """Whether weights of the base itself train beside the adapter's, such as biases."""
    prefix = getattr(student.base_model, "prefix", None) or "lora_"
    marks = (prefix, "modules_to_save", "trainable_tokens")
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    return any(not any(mark in name for mark in marks) for name in trained)


@contextmanager
def twin(student: Any, standing: Standing) -> Iterator[PreTrainedModel]:
    """The student's modules once more around the same weights, with its adapter off or another at work.

    Modules are copied and tensors are not, so that each of the two has switches of its own and takes no memory.

    Raises:
        InputError: the adapter is not there, or modules that cannot be copied.
    """
    if standing.kind == "adapter" and _EMA_ADAPTER not in student.peft_config:
        names = ", ".join(student.peft_config)
        raise InputError(f"teacher: the student has no adapter {_EMA_ADAPTER!r} ({names}); give OverlapCallback a path")
    held: dict[int, Any] = {id(tensor): tensor for tensor in (*student.parameters(), *student.buffers())}
    training = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    try:
        try:
            other = copy.deepcopy(student, held)
        except Exception as error:  # whatever a library hangs on a module
            raise InputError(
                f"teacher: its modules, which are the student's with another adapter, cannot be copied "
                f"({type(error).__name__}: {brief(error)}); give OverlapCallback a path as teacher"
            ) from None
        if standing.kind == "base":
            other.base_model.disable_adapter_layers()
        else:
            other.set_adapter(_EMA_ADAPTER)
        yield other
    finally:
        for parameter, trains in training:  # the switches of adapters set it, on the weights that both have
            parameter.requires_grad_(trains)


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A digest over some values of every parameter, which a training step that moves the model changes."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        some = torch.cat([flat[:_SAMPLED], flat[-_SAMPLED:]])
        digest.update(some.cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def missing_teacher(trainer: Trainer) -> str:
    """Why a trainer without ``teacher_model`` has none that can be asked, in words."""
    name, args = type(trainer).__name__, trainer.args
    urls = getattr(args, "teacher_server_urls", None) or getattr(args, "teacher_model_server_url", None)
    if urls:
        said = ", ".join(map(str, urls.values())) if isinstance(urls, Mapping) else str(urls)
        return (
            f"{name}: its teacher is served ({said}); give OverlapCallback teacher=URL where that is a server of vLLM "
            "or SGLang itself, else the path or hub id of the model that is served"
        )
    return f"{name} has no teacher_model; give OverlapCallback a teacher: a path, a hub id or a loaded model"


def place_of(model: Any) -> str | None:
    """The path or hub id that a model was loaded from; of one with an adapter, its base's."""
    return getattr(model.config, "_name_or_path", None) or None


def is_path(given: Any) -> bool:
    """Whether a teacher is given by where it lies."""
    return isinstance(given, (str, Path))
