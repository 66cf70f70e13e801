"""Progress and messages on stderr: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from opd_probe.plain import visible

INTERVAL = 5.0
"""Seconds between plain lines. Work that is over before prints none."""


class StderrProgress:
    """Implements :class:`opd_probe.progress.Progress`."""

    def __init__(self) -> None:
        self._live: Any = None
        self._bar: Any = None
        self._task = ""
        self._started = self._printed = time.monotonic()

    def begin(self, task: str) -> None:
        """Start a task; the one before is over."""
        self._task = task
        self._started = self._printed = time.monotonic()
        if sys.stderr is not None and sys.stderr.isatty():
            self._start_live()
            for known in self._live.task_ids:
                self._live.remove_task(known)
            self._bar = self._live.add_task(visible(task), total=None)

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` units of the current task."""
        if self._live is not None:
            self._live.update(self._bar, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self._printed < INTERVAL:
            return
        self._printed = now
        spent = now - self._started
        left = f", about {_clock(spent * (total - done) / done)} left" if done else ""
        self.say(f"{self._task}: {done:,} of {total:,} ({done / max(total, 1):.0%}) after {_clock(spent)}{left}")

    def say(self, line: str) -> None:
        """One line on stderr, above a live bar if there is one."""
        line = visible(line)
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:  # closed by whoever started this process
            with suppress(OSError):  # nobody can be told, and the work goes on
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the live bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _start_live(self) -> None:
        if self._live is not None:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Live

        self._live = Live(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._live.start()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
