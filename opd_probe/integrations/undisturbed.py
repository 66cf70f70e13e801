"""A look into models in the middle of their training that leaves no mark on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from opd_probe.errors import InputError


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Whatever happens in the block: afterwards the modules are in the modes they were in, and Python's, numpy's and
    torch's random numbers (on the CPU and on the models' GPUs) go on as if nothing had happened.

    Within it, a forward that mixed precision wrapped is the model's own, so that weights compute in the type they are
    stored in, as those of a saved checkpoint would.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    forwards = [(model, model.__dict__["forward"]) for model in models if _wrapped(model)]
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=_cuda_devices(models)):
        try:
            for model, _ in forwards:
                model.forward = model.__dict__["_original_forward"]
            yield
        finally:
            for model, forward in forwards:
                model.forward = forward
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            np.random.set_state(legacy)


def _wrapped(model: nn.Module) -> bool:
    """Whether accelerate replaced the forward, and kept the original."""
    return "forward" in model.__dict__ and "_original_forward" in model.__dict__


def _cuda_devices(models: tuple[nn.Module, ...]) -> list[int]:
    if not torch.cuda.is_available():
        return []
    found: set[Any] = {p.device for model in models for p in model.parameters() if p.device.type == "cuda"}
    return sorted({torch.cuda.current_device(), *(device.index for device in found)})


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Refuse a model whose parameters are spread over processes, of which none holds the whole.

    Raises:
        InputError: parameters of FSDP (1 or 2), tensor parallelism or DeepSpeed ZeRO-3.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    zero3 = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    shards = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    flat = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    if zero3 or shards or flat:
        how = "DeepSpeed ZeRO-3" if zero3 else "FSDP or tensor parallelism"
        raise InputError(
            f"{what}: its parameters are sharded ({how}), so that no process holds the whole model; expected one "
            "device or DDP; save checkpoints and run opd-probe overlap --ckpts on them"
        )
