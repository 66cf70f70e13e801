"""SIGTERM and SIGHUP, which batch schedulers and closed shells send, as interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Within the block a signal that ends the process raises :class:`KeyboardInterrupt`, so that what is half-written
    is removed; yields the list of those that came. One that is ignored, as ``nohup`` has it, stays ignored."""
    received: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        received.append(number)
        if len(received) == 1:  # what cleans up is not to be interrupted itself
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
