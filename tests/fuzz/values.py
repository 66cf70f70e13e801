"""A grammar of JSON values that readers did not ask for, and changes of values that they did."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 63, 64, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e39, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "0", "1", "-1", "1.5", "1e999", "nan", "NaN", "null", "None", "true", "[]", "{}", "[1, 2", '"',
    "a" * 300, "\x00", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eright", "\ud800", "\U0001f600", "é 漢 ع", "\x85",  # noqa: E501
    "=1+1", "$\\frac{$", "<script>", "%s%n", "{0.__class__}", "{{ x }}", "{% for %}", "..", ".", "/", "../../x", "/dev/null",  # noqa: E501
    "~", "~nobody", "a/b", "org/name", "http://user:hunter2@host/v1#m", "s3://bucket/x", "model.safetensors", "float32",
    "user", "assistant", "system", "tool", "stop", "length", "checkpoint-5", "sampled_ids", "retokenized", "C:\\x", "a:b",  # noqa: E501
)  # fmt: skip
WORDS = (None, True, False)


def scalar(random: Random) -> Any:
    """A number, a text, null or a truth value."""
    return random.choice(random.choice((NUMBERS, TEXTS, WORDS)))


def value(random: Random, depth: int = 3, names: tuple[str, ...] = ()) -> Any:
    """Any JSON value, its objects with some of ``names``."""
    if depth == 0 or random.random() < 0.4:
        return scalar(random)
    if random.random() < 0.5:
        return [value(random, depth - 1, names) for _ in range(random.choice((0, 1, 2, 3, 3, 9)))]
    keys = [random.choice(names) if names and random.random() < 0.8 else str(random.choice(TEXTS)) for _ in range(4)]
    return {key: value(random, depth - 1, names) for key in keys[: random.randint(0, 4)]}


def names_in(given: Any) -> tuple[str, ...]:
    """All keys of the objects in a value."""
    found: dict[str, None] = {}
    waiting = [given]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found |= dict.fromkeys(key for key in one if isinstance(key, str))
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one[:50]
    return tuple(found)


Place = tuple[Any, Any]
"""A container and the key or the index of a value in it."""


def places(given: Any) -> list[Place]:
    """Where the values in a value stand."""
    found: list[Place] = []
    waiting = [given]
    while waiting and len(found) < 2_000:
        one = waiting.pop()
        inner = one.items() if isinstance(one, dict) else enumerate(one[:40]) if isinstance(one, list) else ()
        for key, held in inner:
            found.append((one, key))
            waiting.append(held)
    return found


def changed(random: Random, given: Any, changes: int | None = None) -> Any:
    """A copy of a value with a few changes anywhere in it: of type, of size, of names, of number."""
    root = [copy.deepcopy(given)]
    names = names_in(given)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6)) if changes is None else changes):
        there = places(root)
        if not there:
            break
        container, key = random.choice(there)
        random.choice(_CHANGES)(random, container, key, names)
    return root[0] if root else None


def _replaced(random: Random, container: Any, key: Any, names: tuple[str, ...]) -> None:
    container[key] = scalar(random) if random.random() < 0.7 else value(random, 2, names)


def _removed(random: Random, container: Any, key: Any, names: tuple[str, ...]) -> None:  # noqa: ARG001
    del container[key]


def _renamed(random: Random, container: Any, key: Any, names: tuple[str, ...]) -> None:
    if isinstance(container, dict):
        container[random.choice(names or TEXTS)] = container.pop(key)


def _near(random: Random, container: Any, key: Any, names: tuple[str, ...]) -> None:  # noqa: ARG001
    """A value next to the one that is there, in another type, or wrapped."""
    held = container[key]
    options: list[Any] = [[held], {"0": held}, str(held), None, repr(held)]
    if isinstance(held, (int, float)) and not isinstance(held, bool):
        options += [held + 1, held - 1, -held, held * 1000, held / 3]
    if isinstance(held, str):
        options += [held * 2, held[:-1], held.upper(), held + "\x1b", list(held), f"../{held}", held.encode().hex()]
    if isinstance(held, list):
        options += [held * 2, held[:-1], held[::-1], held + held[:1], [held, held], dict(enumerate(held[:3]))]
        options += [[*held[:1], scalar(random)]]
    if isinstance(held, dict):
        options += [list(held), list(held.values()), {**held, str(random.choice(TEXTS)): scalar(random)}]
    container[key] = random.choice(options)


def _taken(random: Random, container: Any, key: Any, names: tuple[str, ...]) -> None:  # noqa: ARG001
    """What stands elsewhere beside it."""
    others = list(container.values()) if isinstance(container, dict) else container
    container[key] = copy.deepcopy(random.choice(others))


_CHANGES: tuple[Callable[[Random, Any, Any, tuple[str, ...]], None], ...] = (
    _replaced, _replaced, _removed, _renamed, _near, _near, _near, _taken,
)  # fmt: skip


def as_json(random: Random, given: Any) -> bytes:
    """JSON text of a value, now and then in a way that few write it."""
    try:
        text = json.dumps(given, ensure_ascii=random.random() < 0.6, default=str)
    except (ValueError, TypeError):  # keys that are no text, numbers of too many digits
        text = json.dumps(str(type(given)))
    tricks = random.random()
    if tricks < 0.02:
        text = "[" * 50_000 + text
    elif tricks < 0.03:
        text = text.replace(": 1", ": 1" + "0" * 5_000, 1)
    elif tricks < 0.05 and text.startswith("{") and len(text) > 2:
        text = '{"step": null, "step": 1, ' + text[1:]
    return text.encode("utf-8", "surrogatepass")
