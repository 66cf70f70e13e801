"""SIGTERM and SIGHUP, which batch schedulers and closed shells send, as interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopped_by_signals(received: list[int]) -> Iterator[None]:
    """Within the block a signal that ends the process raises :class:`KeyboardInterrupt`, so that what is half-written
    is removed. One that is ignored, as ``nohup`` has it, stays ignored.

    Args:
        received: grows by each that comes.
    """

    def interrupt(number: int, _: Any) -> None:
        received.append(number)
        if len(received) == 1:  # what cleans up is not to be interrupted itself
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    before[number] = signal.SIG_DFL
                    signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
