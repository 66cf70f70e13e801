"""How the stages report progress; the command line implements it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what is being done. Calls come from one thread."""

    def begin(self, task: str) -> None:
        """A task starts; the one before is over."""

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` units of the current task."""

    def say(self, line: str) -> None:
        """One line for the user, such as a file that was written."""


class Silent:
    """Reports nothing."""

    def begin(self, task: str) -> None: ...

    def update(self, done: int, total: int) -> None: ...

    def say(self, line: str) -> None: ...
