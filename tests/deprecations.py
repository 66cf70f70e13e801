"""What libraries call deprecated, in a warning or in their log, wherever the call is ours.

``filterwarnings`` in pyproject.toml raises the warnings that name their caller; libraries leave that out as often, or
only log.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "tokenizers", "torch")
"""Those that log."""

OURS = ("opd_probe", "tests", "benchmarks")
_BETWEEN = ("_pytest", "logging", "warnings", "functools", "contextlib", "typing_extensions", __name__)
_KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
_SAID = re.compile(r"deprecat|will be removed|is removed in", re.IGNORECASE)


class Ear(logging.Handler):
    """Keeps what is said of calls of ours.

    Attributes:
        heard: who says what of whom, a line each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """A message in a log."""
        if _SAID.search(record.getMessage()):
            self._keep(record.getMessage(), sys._getframe())

    def warned(self, message: Warning | str, category: type[Warning]) -> None:
        """A warning that nothing ignored."""
        if issubclass(category, _KINDS) or _SAID.search(str(message)):
            self._keep(f"{category.__name__}: {message}", sys._getframe())

    def _keep(self, said: str, frame: FrameType | None) -> None:
        """The caller is the first that stands outside of the library that speaks."""
        modules = [name for name in _modules(frame) if not _within(name, _BETWEEN)]
        speaks = modules[0].partition(".")[0] if modules else ""
        caller = next((name for name in modules if not _within(name, (speaks,))), "")
        if _within(caller, OURS) and not _within(speaks, OURS):
            self.heard.append(f"{speaks}, called by {caller}: {said}")


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _modules(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is heard while the block runs."""
    ear, before = Ear(), warnings.showwarning
    said_once = getattr(logging.Logger, "warning_once", None)
    if hasattr(said_once, "cache_clear"):
        said_once.cache_clear()  # transformers says some things once in a process, in whichever test comes first

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        ear.warned(message, category)
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(ear)
    try:
        yield ear.heard
    finally:
        for logger in loggers:
            logger.removeHandler(ear)
        if warnings.showwarning is show:
            warnings.showwarning = before
