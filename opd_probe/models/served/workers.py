"""Requests in threads, a few at a time, whose answers are taken as they come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def few_at_a_time(
    ask: Callable[[_Item], _Answer], items: Sequence[_Item], at_once: int, stop: Callable[[], None]
) -> Iterator[tuple[int, _Answer]]:
    """Yield (index, answer) as answers come, with at most ``at_once`` requests under way.

    The first failure ends it: ``stop`` is called, nothing more is asked, and answers that are under way are still
    yielded before it is raised. Whoever stops listening waits for none of them.
    """
    waiting = deque(range(len(items)))
    told: SimpleQueue[tuple[int, _Answer] | BaseException | None] = SimpleQueue()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                index = waiting.popleft()
            except IndexError:
                break
            try:
                told.put((index, ask(items[index])))
            except BaseException as error:
                over.set()
                told.put(error)
        told.put(None)

    working = min(at_once, len(items))
    failure: BaseException | None = None
    try:
        for _ in range(working):
            # Not a pool: its threads would keep an interrupted process until the server has answered.
            threading.Thread(target=work, daemon=True, name="opd-probe-server").start()
        while working:
            entry = told.get()
            if entry is None:
                working -= 1
            elif isinstance(entry, BaseException):
                failure = failure or entry
                stop()
            else:
                yield entry
    finally:
        over.set()
        stop()
    if failure is not None:
        raise failure
