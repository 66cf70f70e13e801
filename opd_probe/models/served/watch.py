"""What is not over for long is said, while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOKS = 20
"""How often one looks in the time after which something is said."""


class Watch:
    """Says of work in other threads that it is not over yet: first after a while, then each time that has doubled.

    One thing is said of all that is under way: what has waited longest, and how much waits beside it.

    Args:
        after: seconds until it is said first.
        say: called from a thread of the watch's own, with the work, how long it has gone on (seconds), and how many
            others have been under way for as long as that is said of.
    """

    def __init__(self, after: float, say: Callable[[str, float, int], None]) -> None:
        self._after, self._say = after, say
        self._lock = threading.Lock()
        self._under_way: dict[int, tuple[str, float]] = {}
        self._next = after
        self._number = 0
        self._over = threading.Event()
        self._looking = False

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Watch over the block, which does ``what``."""
        with self._lock:
            self._number += 1
            number = self._number
            self._under_way[number] = what, time.monotonic()
            if not self._looking and not self._over.is_set():
                self._looking = True
                threading.Thread(target=self._look, daemon=True, name="opd-probe-watch").start()
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[number]

    def end(self) -> None:
        """Say nothing any more."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(self._after / _LOOKS):
            now = time.monotonic()
            with self._lock:
                late = [(what, now - start) for what, start in self._under_way.values() if now - start >= self._after]
                if not late:
                    self._next = self._after
                    continue
                what, waited = max(late, key=lambda entry: entry[1])
                if waited < self._next:
                    continue
                while self._next <= waited:
                    self._next *= 2
            self._say(what, waited, len(late) - 1)
