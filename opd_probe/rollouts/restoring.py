"""Special tokens for prompts that were decoded without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts.prompts import render_messages

_MARK = "\ue000\ue001"
"""Characters that no chat template contains."""

_ROLES = (("user",), ("system", "user"))
_VARIABLES: tuple[Mapping[str, Any], ...] = ({}, {"enable_thinking": False})


@dataclass(frozen=True, slots=True)
class Restored:
    """A prompt with its special tokens: its ids, and the chat messages that it is made of."""

    ids: list[int]
    messages: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the template puts these messages: what stands before, between and after their contents.

    Attributes:
        turns: what would stand between further turns.
    """

    roles: Sequence[str]
    variables: Mapping[str, Any]
    pieces: Sequence[str]
    turns: Sequence[str]


class Restorer:
    """Finds the messages of a prompt that was decoded without special tokens, by a tokenizer's chat template.

    The prompt is taken for one user message, or a system message and one user message, with thinking left as the
    template has it, or off; and only if the template's words are around it, and the result decodes to just the same
    text. A text with the words that the template puts between turns may be of several turns, and a template without a
    word of its own would take any text for a message: neither is restored.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._layouts: list[_Layout] | None = None

    def restore(self, text: str) -> Restored | None:
        """The prompt with its special tokens, or None where they cannot be told."""
        if self._layouts is None:
            self._layouts = list(self._found()) if getattr(self._tokenizer, "chat_template", None) else []
        for layout in self._layouts:
            contents = _between(text.strip(), layout.pieces)
            if contents is None or any(words in content for words in layout.turns for content in contents):
                continue
            messages = [{"role": role, "content": held} for role, held in zip(layout.roles, contents, strict=True)]
            rendered = self._rendered(messages, layout.variables)
            ids: list[int] = self._tokenizer(rendered, add_special_tokens=False)["input_ids"] if rendered else []
            if ids and self._tokenizer.decode(ids, skip_special_tokens=True) == text:
                return Restored(ids, messages)
        return None

    def _found(self) -> Iterator[_Layout]:
        for roles in _ROLES:
            for variables in _VARIABLES:
                pieces = self._pieces(roles, variables)
                if any(piece.strip() for piece in pieces):
                    turns = self._pieces(("user", "assistant", "user"), variables)[1:-1]
                    outer = [pieces[0].lstrip(), *pieces[1:-1], pieces[-1].rstrip()]
                    yield _Layout(roles, variables, outer, [words for words in turns if words.strip()])

    def _pieces(self, roles: Sequence[str], variables: Mapping[str, Any]) -> list[str]:
        """What stands around the contents, without special tokens; empty where the template takes no such messages."""
        text = self._rendered([{"role": role, "content": _MARK} for role in roles], variables) or ""
        for token in self._tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(token.content, "")
        pieces = text.split(_MARK)
        return pieces if len(pieces) == len(roles) + 1 else []

    def _rendered(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str | None:
        try:
            return render_messages("prompt", messages, self._tokenizer, variables=variables)
        except InputError:
            return None


def _between(text: str, pieces: Sequence[str]) -> list[str] | None:
    """The contents between the pieces, when each piece has one place."""
    first, *inner, last = pieces
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return None
    contents = [text[len(first) : len(text) - len(last)]]
    for piece in inner:
        if not piece.strip() or contents[-1].count(piece) != 1:
            return None
        contents[-1:] = contents[-1].split(piece)
    return contents
