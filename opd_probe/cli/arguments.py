"""``--ckpts runs/*``: the shell makes many words after one option; typer wants it before each."""

from __future__ import annotations

from collections.abc import Sequence

from opd_probe.errors import InputError

MANY = {"--ckpts": "path", "--student": "path", "--traces": "path", "--only": "name"}
"""Options that take every following word up to the next option, and what such a word is."""


def spread(argv: Sequence[str]) -> list[str]:
    """Repeat an option of :data:`MANY` before each value: ``--ckpts a b`` becomes ``--ckpts a --ckpts b``.

    Raises:
        InputError: the option is followed by no value.
    """
    result: list[str] = []
    option: str | None = None
    waiting = False
    for index, word in enumerate(argv):
        is_option = word.startswith("-") and len(word) > 1
        if waiting and (is_option or word == ""):
            break
        if word == "--":
            return result + list(argv[index:])
        name, equals, _ = word.partition("=")
        if name in MANY:
            option, waiting = name, not equals
            if equals:
                result.append(word)
        elif is_option:
            option = None
            result.append(word)
        elif option:
            result += [option, word]
            waiting = False
        else:
            result.append(word)
    if waiting:
        raise InputError(f"{option}: expected at least one {MANY[str(option)]} after it")
    return result
