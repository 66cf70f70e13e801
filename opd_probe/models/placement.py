"""Models that are spread over devices, some of their weights perhaps offloaded to main memory or to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from opd_probe.errors import InputError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

DeviceMap = str | Mapping[str, Any]
"""One of :data:`DEVICE_MAPS`, or the device of every module by name (``cpu``, ``cuda:1``, ``disk``, …)."""


def check_device_map(device_map: DeviceMap | None, device: str | None) -> None:
    """Refuse a device map that cannot be followed.

    Raises:
        InputError: an unknown name, a device beside it, or accelerate is not installed.
    """
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise InputError(f"device map {device_map!r}: expected one of {', '.join(DEVICE_MAPS)}")
    if device is not None:
        raise InputError(f"device {device!r} and device map {device_map!r}: both are given; keep one of them")
    if find_spec("accelerate") is None:
        raise InputError(
            f"device map {device_map!r}: needs accelerate, which is not installed; pip install 'opd-probe[accelerate]'"
        )


def input_embeddings(model: Any) -> Any:
    """The module that turns a model's token ids into vectors; None where it names none."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def input_device(model: Any) -> torch.device:
    """Where a model's token ids go: where its embeddings are used, wherever they are kept."""
    embeddings = input_embeddings(model)
    execution = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    if execution is not None:
        return torch.device(execution)
    weight = getattr(embeddings, "weight", None)
    return weight.device if weight is not None else model.device  # type: ignore[no-any-return]


@contextmanager
def weights_at_hand(module: Any) -> Iterator[None]:
    """While the block runs, an offloaded module's own weights are where they are used; a tensor taken then stays."""
    owner = getattr(module, "base_layer", module)  # beneath an adapter
    if not owner.weight.is_meta:
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(owner):
        yield
