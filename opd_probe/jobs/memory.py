"""Out of memory, told as a line that names what to lower."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_probe.errors import InputError, OutOfMemoryError, is_refused_allocation
from opd_probe.models.checkpoints import format_of, headers_of, resolve_checkpoint
from opd_probe.models.formats.headers import BYTES
from opd_probe.models.hub import localized
from opd_probe.types import Checkpoint

if TYPE_CHECKING:
    from opd_probe.models.placement import DeviceMap


@contextmanager
def memory_advice(doing: str) -> Iterator[None]:
    """Turn a refused allocation inside into an :class:`OutOfMemoryError`.

    Args:
        doing: what needed the memory, for the message.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_refused_allocation(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while {doing}; lower --batch-tokens, take less with --max-states, load "
            "smaller weights with --dtype bfloat16, or one model at a time with --sequential"
        ) from None


LARGE = 10_000_000
"""Parameters of a model whose memory is worth a garbage collection, which takes up to a second."""


def is_large(model: Any) -> bool:
    """Whether a loaded model that is let go should be collected at once: modules hold reference cycles, so that it
    would stay beside the next one otherwise."""
    return int(model.identity["parameters"]) > LARGE


HEADROOM = 0.85
"""The share of the free memory that weights may take; the rest is for what a replay holds beside them."""


def too_large_together(
    sources: Sequence[Any], dtype: str | None, device: str | None, device_map: DeviceMap | None = None
) -> bool:
    """Whether models that are still on disk do not fit into memory together, but each of them alone.

    False where it cannot be told: for models in memory, or when the free memory is unknown.
    """
    known = [_bytes_needed(source, dtype) for source in sources]
    sizes = [size for size in known if size is not None]
    free = free_memory(device, device_map)
    if free is None or len(sizes) < len(known):
        return False
    room = HEADROOM * free
    return sum(sizes) > room >= max(sizes)


def _bytes_needed(source: Any, dtype: str | None) -> int | None:
    """Bytes of a model's weights once loaded, from the headers of its files."""
    if isinstance(source, (str, Path)):
        source = resolve_checkpoint(source)
    if not isinstance(source, Checkpoint):
        return None
    local = localized(source)
    try:
        headers = headers_of(local)
    except InputError:  # loading it will say what is wrong, once what comes before it is done
        return None
    unpacked = "float32" if local.format == "gguf" else ""  # what is packed there does not stay so
    kinds = ((header, dtype or header.dtype) for header in headers.values())
    own = sum(header.values * BYTES.get(kind, BYTES.get(unpacked, 1)) for header, kind in kinds)
    adapter = local.base is not None and format_of(local).adapter(Path(local.path))
    base = _bytes_needed(local.base, dtype) if adapter else 0
    return None if base is None else own + base


def free_memory(device: str | None, device_map: DeviceMap | None = None) -> int | None:
    """Bytes on the device, or on all GPUs together for models that are spread."""
    import torch

    if device_map is not None and torch.cuda.is_available():
        return sum(int(torch.cuda.mem_get_info(number)[0]) for number in range(torch.cuda.device_count()))
    if (device or "cuda").startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
