"""Out of memory, told as a line that names what to lower."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from opd_probe.errors import OutOfMemoryError


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
        if not _is_refused_allocation(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while {doing}; lower --batch-tokens, take less with --max-states, or load "
            "smaller weights with --dtype bfloat16"
        ) from None


def _is_refused_allocation(error: BaseException) -> bool:
    """torch says it by type on accelerators, and by text alone on the CPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "out of memory" in text
    )
