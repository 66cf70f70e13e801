"""The one root of every error that is the user's to mend.

The command line prints an :class:`OpdProbeError` as a single line and exits with code 2. Anything else is a
defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import warnings

from opd_probe.plain import told


class OpdProbeError(Exception):
    """Bad input. The message is one line: what, where, expected, got, and what to do.

    Whatever of the input stands in it is spelled out, see :func:`opd_probe.plain.told`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(told(message))


class InputError(OpdProbeError, ValueError):
    """A value, a file's content or an option that cannot be used."""


class MissingError(OpdProbeError, FileNotFoundError):
    """A path, a checkpoint or a teacher that is not there."""

    def __str__(self) -> str:  # FileNotFoundError would print its arguments as an errno tuple
        return str(self.args[0]) if self.args else ""


class VocabularyError(InputError):
    """Two tokenizers, or ids and an output layer, that do not fit each other."""


class TraceError(InputError):
    """A trace that cannot be read, or that does not hold what is asked of it."""


class LogitError(InputError):
    """A logit that is NaN or +inf. ``row`` is the 0-based row of the offending state in its batch."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class OutOfMemoryError(OpdProbeError, MemoryError):
    """The machine ran out of memory; the message names the option that lowers the need."""


class OutputError(OpdProbeError, OSError):
    """An output that cannot be written."""

    def __str__(self) -> str:  # OSError would print its arguments as an errno tuple
        return str(self.args[0]) if self.args else ""


class ServerError(OpdProbeError, ConnectionError):
    """A server that cannot be reached, or whose answers cannot be used. ``index`` is the 0-based place of the request
    among several, where one of them failed."""

    index: int | None = None

    def __str__(self) -> str:  # as of OutputError
        return str(self.args[0]) if self.args else ""


class OpdProbeWarning(UserWarning):
    """Something the user should know, that does not stop the work."""

    def __init__(self, message: str = "") -> None:
        super().__init__(told(message))


class PassingWarning(OpdProbeWarning):
    """What concerns one execution of a job alone, and not the same job the next time."""


def warn(message: str) -> None:
    """Tell the user something that does not stop the work."""
    warnings.warn(message, OpdProbeWarning, stacklevel=2)


def warn_in_passing(message: str) -> None:
    """Likewise, of something that is over: such as why a trace is made anew."""
    warnings.warn(message, PassingWarning, stacklevel=2)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust met what it cannot go on with, which Python does not count among exceptions."""
    return type(error).__name__ == "PanicException"


def is_refused_allocation(error: BaseException) -> bool:
    """torch says it by type on accelerators, and by text alone on the CPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "out of memory" in text
    )
