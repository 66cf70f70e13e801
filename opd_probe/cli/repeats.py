"""Warnings once per command: what is said of each checkpoint is said of the first, and the others are listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

_VALUE = re.compile(r"(?<!\w)'[^']*'|\d[\d.,]*(?:[eE][-+]?\d+)?%?")
"""What differs between warnings of one kind: numbers, and what is quoted."""
_LISTED = 8
_SHOWN = 72


class Repeats:
    """Shows the first warning of each kind at once, and at the end what differs in the others.

    Warnings are of one kind when they are the same but for numbers and quoted words.

    Args:
        say: shows a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._first: dict[str, str] = {}
        self._others: dict[str, dict[str, None]] = {}

    def show(self, text: str) -> None:
        """Take in a warning of one line."""
        kind = _VALUE.sub("…", text)
        if kind not in self._first:
            self._first[kind] = text
            self._say(f"warning: {text}")
        elif text != self._first[kind]:
            self._others.setdefault(kind, {})[text] = None

    def close(self) -> None:
        """Say how many more there were of each kind, and what of them differs from the first."""
        for kind, others in self._others.items():
            first = self._first[kind]
            listed = "; ".join(_difference(first, other) for other in list(others)[:_LISTED])
            more = "; …" if len(others) > _LISTED else ""
            begun = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}…"
            with suppress(OSError):  # the terminal may be what has gone
                self._say(f"warning: {len(others)} more of the kind ‘{begun}’, with {listed}{more}")


def _difference(first: str, other: str) -> str:
    """The values of a warning that the first one has not at their place."""
    pairs = zip(_values(first), _values(other), strict=True)
    return ", ".join(value for known, value in pairs if value != known)


def _values(text: str) -> list[str]:
    return [match.group().rstrip(".,") for match in _VALUE.finditer(text)]
