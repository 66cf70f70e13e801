"""Token ids for rollouts that came as text."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.rollouts.prompts import encode_messages, encode_text
from opd_probe.types import Rollout

STRIPPED = {"special_tokens": "stripped"}
"""What importers put into ``Rollout.extra`` of text that was decoded without its special tokens."""

_MARKS = ("\ue000", "\ue001")
"""Characters that no chat template contains."""


def encode_rollouts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[Rollout]:
    """Token ids for rollouts that came as text; the others stay as they are.

    A prompt string is encoded as it stands, messages through the chat template; a prompt that was decoded without its
    special tokens gets them back where the template says how, see :func:`restore_prompt`. The response is encoded
    without special tokens, EOS appended only when its finish reason is ``stop``.

    Raises:
        InputError: a rollout is text and there is no tokenizer, or no chat template for messages.
    """
    encoded = []
    prompts = _Prompts(tokenizer)
    for rollout in rollouts:
        if not _is_text(rollout):
            encoded.append(rollout)
            continue
        if tokenizer is None:
            raise InputError(f"rollout {rollout.id!r}: is text, and the student has no tokenizer; give --tokenizer")
        prompt, known = prompts.of(rollout)
        response = tokenizer(rollout.response, add_special_tokens=False)["input_ids"]
        if rollout.finish_reason == "stop" and tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
        encoded.append(
            dataclasses.replace(
                rollout,
                prompt_ids=tuple(prompt),
                response_ids=tuple(response),
                token_source="retokenized",
                extra={**rollout.extra, **known},
            )
        )
    prompts.warn()
    return encoded


def warn_of_text(rollouts: Sequence[Rollout], what: str) -> None:
    """Say that the states of rollouts are not just what was sampled, where they came as text."""
    if any(rollout.token_source == "retokenized" for rollout in rollouts):
        warnings.warn(
            f"{what}: re-tokenised text, whose states may differ from those that the student visited",
            OpdProbeWarning,
            stacklevel=3,
        )


def _is_text(rollout: Rollout) -> bool:
    """Whether a rollout waits for a tokenizer."""
    prompt = rollout.prompt is not None or bool(rollout.extra.get("messages"))
    text = rollout.token_source == "retokenized" and rollout.response is not None and prompt
    return text and not rollout.prompt_ids and not rollout.response_ids


class _Prompts:
    """Prompts as ids, each distinct one that lacks its special tokens restored once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._restored: dict[str, tuple[list[int], list[dict[str, str]]] | None] = {}

    def of(self, rollout: Rollout) -> tuple[list[int], dict[str, Any]]:
        """The ids, and the ``messages`` where the text turned out to be made of them."""
        if rollout.prompt is None:
            messages = rollout.extra.get("messages") or ()
            return encode_messages(f"rollout {rollout.id!r}", messages, self._tokenizer), {}
        if rollout.extra.get("special_tokens") == STRIPPED["special_tokens"]:
            if rollout.prompt not in self._restored:
                self._restored[rollout.prompt] = restore_prompt(rollout.prompt, self._tokenizer)
            if (restored := self._restored[rollout.prompt]) is not None:
                return restored[0], {"messages": restored[1]}
        return encode_text(rollout.prompt, self._tokenizer), {}

    def warn(self) -> None:
        """Say how many prompts are read as they stand though they lack their special tokens."""
        lost = sum(found is None for found in self._restored.values())
        if lost:
            warnings.warn(
                f"{lost} of {len(self._restored)} prompts were written without their special tokens, and the student's "
                "chat template does not say where these were; read as they stand, they may not be what the student saw",
                OpdProbeWarning,
                stacklevel=3,
            )


def restore_prompt(text: str, tokenizer: Any) -> tuple[list[int], list[dict[str, str]]] | None:
    """The ids and chat messages of a prompt that was decoded without special tokens, or None where they cannot be told.

    It is taken for one user message, or a system message and one user message, through the chat template (with
    thinking left as it is, or off), and only if the result decodes to just this text. A text with the words that the
    template puts between turns may be of several turns, and is not restored.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    for roles in (("user",), ("system", "user")):
        for options in ({}, {"enable_thinking": False}):
            pieces = _pieces(tokenizer, roles, options)
            contents = None if pieces is None else _between(text.strip(), pieces)
            if contents is None or _has_turns(tokenizer, contents, options):
                continue
            messages = [{"role": role, "content": held} for role, held in zip(roles, contents, strict=True)]
            rendered = _rendered(tokenizer, messages, options)
            ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"] if rendered else []
            if ids and tokenizer.decode(ids, skip_special_tokens=True) == text:
                return ids, messages
    return None


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str | None:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    except (TemplateError, ValueError, TypeError):
        return None


def _pieces(tokenizer: Any, roles: Sequence[str], options: Mapping[str, Any]) -> list[str] | None:
    """What stands before, between and after the contents of messages, without special tokens."""
    text = _rendered(tokenizer, [{"role": role, "content": "".join(_MARKS)} for role in roles], options)
    if text is None:
        return None
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, "")
    pieces = text.split("".join(_MARKS))
    if len(pieces) != len(roles) + 1 or not any(piece.strip() for piece in pieces):
        return None  # without a word of the template's own, plain text would be taken for a message
    return [pieces[0].lstrip(), *pieces[1:-1], pieces[-1].rstrip()]


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


def _has_turns(tokenizer: Any, contents: Sequence[str], options: Mapping[str, Any]) -> bool:
    pieces = _pieces(tokenizer, ("user", "assistant", "user"), options) or []
    return any(piece.strip() and piece in content for piece in pieces[1:-1] for content in contents)
