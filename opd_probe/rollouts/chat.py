"""What goes into a chat template beside plain messages, and whether all of them came out of it.

Templates take the content of a message as text, as a list of parts, or as both. Servers find out which and pass the
other form in the one that is taken, text parts joined by a line break; so is it here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from opd_probe.errors import InputError
from opd_probe.texts import parse_json
from opd_probe.types import Prompt, Rollout

Messages = Sequence[Mapping[str, Any]]

TOOLS, KWARGS = "tools", "chat_template_kwargs"
"""Fields of a row beside its messages: functions that the template tells of, and variables that it may use."""

THINKING = ("enable_thinking", "thinking")
"""What chat templates call the variable that switches thinking."""

_MARK = "\ue000mark\ue001"
_TEXT_PARTS = ("text", "input_text", "output_text")
_WORD = re.compile(r"\w+")
_THOUGHT = "</think>"
_takes: dict[str, tuple[bool, bool]] = {}
"""By template: whether it takes content as text, and as parts."""


def chat_variables(place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's fields say to its template: ``tools``, and all of ``chat_template_kwargs``.

    Raises:
        InputError: one of them is neither an object, or a list of them, nor JSON of it.
    """
    tools, kwargs = (_parsed(fields.get(name)) for name in (TOOLS, KWARGS))
    if tools is not None and not (isinstance(tools, (list, tuple)) and all(isinstance(t, Mapping) for t in tools)):
        raise InputError(f"{place}: {TOOLS} is {type(tools).__name__}; expected a list of objects, one per function")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"{place}: {KWARGS} is {type(kwargs).__name__}; expected an object of template variables")
    held = {str(name): value for name, value in (kwargs or {}).items() if value is not None}
    return held | ({TOOLS: [_without_null(tool) for tool in tools]} if tools else {})


def _parsed(value: Any) -> Any:
    """JSON in a column of text, as it is where it is none."""
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    try:
        return parse_json(value)
    except (ValueError, RecursionError):
        return value


def _without_null(value: Any) -> Any:
    """Objects without the keys that only other rows of a Parquet column have."""
    if isinstance(value, Mapping):
        return {name: _without_null(held) for name, held in value.items() if held is not None}
    return [_without_null(held) for held in value] if isinstance(value, (list, tuple)) else value


def with_kwargs(fields: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A row's fields with more template variables, which go before its own."""
    own = _parsed(fields.get(KWARGS))
    return {**fields, KWARGS: {**own, **kwargs} if isinstance(own, Mapping) else dict(kwargs)}


def prompts_with(prompts: Sequence[Prompt], variables: Mapping[str, Any]) -> list[Prompt]:
    """The prompts, those that are chat messages with more template variables."""
    chats = [prompt.messages is not None and bool(variables) for prompt in prompts]
    return [
        replace(prompt, extra=with_kwargs(prompt.extra, variables)) if chat else prompt
        for prompt, chat in zip(prompts, chats, strict=True)
    ]


def rollouts_with(rollouts: Sequence[Rollout], variables: Mapping[str, Any]) -> list[Rollout]:
    """The rollouts, those with chat messages with more template variables."""
    chats = [bool(rollout.extra.get("messages")) and bool(variables) for rollout in rollouts]
    return [
        replace(rollout, extra=with_kwargs(rollout.extra, variables)) if chat else rollout
        for rollout, chat in zip(rollouts, chats, strict=True)
    ]


def thinking_variable(option: str, name: str, thinking: bool, differs: Callable[[str], bool]) -> dict[str, bool]:
    """The variable by which a template takes the thinking mode that is wanted: the one that changes something.

    Args:
        option, name: of the command line, and of the template, for the message.
        differs: whether a variable of this name changes what the template says.

    Raises:
        InputError: none does.
    """
    for variable in THINKING:
        if differs(variable):
            return {variable: thinking}
    raise InputError(
        f"{option}: the chat template {name} says the same with and without thinking (tried "
        f"{' and '.join(THINKING)}); leave the option out or give another template"
    )


def fitted(place: str, messages: Messages, key: str, render: Callable[[Messages], str]) -> list[Mapping[str, Any]]:
    """The messages with their content as the template takes it.

    Args:
        key: what tells templates apart.
        render: makes text of messages by the template; raises where it refuses them.

    Raises:
        InputError: a part of a message is no text.
    """
    texts = [text_of(place, message) for message in messages]
    listed = [isinstance(message.get("content"), (list, tuple)) for message in messages]
    if key not in _takes:
        _takes[key] = _takes_content(render, _MARK), _takes_content(render, [{"type": "text", "text": _MARK}])
    as_text, as_parts = _takes[key]
    fit: list[Mapping[str, Any]] = []
    for message, text, parts in zip(messages, texts, listed, strict=True):
        content = message.get("content")
        if parts and not as_parts:
            content = text
        elif isinstance(content, str) and not as_text and as_parts:
            content = [{"type": "text", "text": content}]
        fit.append(message if content is message.get("content") else {**message, "content": content})
    return fit


def text_of(place: str, message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it joined by line breaks; empty without content.

    Raises:
        InputError: a part of it is no text.
    """
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return content if isinstance(content, str) else ""
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise InputError(
                f"{place}: a message of the {message.get('role')} holds a part of type {kind!r}; expected parts of "
                "text alone, so leave this prompt out"
            )
        texts.append(text)
    return "\n".join(texts)


def _takes_content(render: Callable[[Messages], str], content: Any) -> bool:
    """Whether content of this form comes out as text, and not as what Python or JSON writes of a list."""
    try:
        text = render([{"role": "user", "content": content}])
    except Exception:  # an expression in a template may raise anything
        return False
    return _MARK in text and not re.search(r"""['"]type['"]""", text)


def lost_words(messages: Messages, rendered: str) -> list[str]:
    """Words of the messages that are nowhere in their rendering, each once; of an assistant those behind its thinking,
    which templates leave out on purpose."""
    there = rendered.casefold()
    known = set(_WORD.findall(there))
    lost: dict[str, None] = {}
    for message in messages:
        text = text_of("message", message)
        if message.get("role") == "assistant":
            text = text.rpartition(_THOUGHT)[2]
        for word in _WORD.findall(text):
            folded = word.casefold()
            if folded not in known and folded not in there:
                lost[word] = None
    return list(lost)
