"""Text from outside, made harmless to look at: names, tokens and messages may hold anything."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # what terminals act on
    "\u200e\u200f\u2028-\u202e\u2066-\u2069"  # what turns the order of letters round, or breaks lines
    "\ud800-\udfff]"  # halves of characters, as in file names that are not UTF-8
)
_LOGIN = re.compile(r"(?i)(\bhttps?:(?:[^/\s@]*/){0,2}|\w:/|//)[^/\s@]*@")
"""User and password in an address, which may be mistyped: ``http:-/user:password@host``."""

_LONGEST = 2_000
"""Characters of a message; a whole file may be quoted as a name."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str, keep: str = "") -> str:
    """Text whose control characters are spelled out, as Python does: ESC becomes ``\\x1b``.

    Args:
        keep: characters that stay as they are, such as line breaks.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _spelled(match[0]), text)


def _spelled(character: str) -> str:
    return repr(character)[1:-1] if not character.isprintable() else character


def told(message: str) -> str:
    """A message as one line of bounded length: what it quotes from outside can neither act on a terminal, nor hide
    what stands beside it, nor give a login away that stood in an address."""
    line = visible(_LOGIN.sub(r"\1", " ".join(message.split()) if "\n" in message else message))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"


def csv_cell(value: object) -> object:
    """A cell for a table that a spreadsheet may open: text that it would run as a formula gets a quote before it."""
    if not isinstance(value, str):
        return value
    quoted = f"'{value}" if value.startswith(_FORMULA) else value
    return visible(quoted)
