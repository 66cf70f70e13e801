"""Prompt files: JSONL, the Parquet layout of verl, or data sets of Hugging Face on disk; and their encoding."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, is_panic, warn
from opd_probe.rollouts.chat import chat_variables, fitted, lost_words
from opd_probe.rollouts.fields import reference_answers, several
from opd_probe.rollouts.padding import prompts_without_padding, special_ids_of
from opd_probe.rollouts.rows import absent, read_rows
from opd_probe.types import Prompt

FIELDS = ("id", "prompt", "messages", "prompt_ids", "answer")


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts: rows with ``prompt`` or ``messages``, and optional ``id`` and ``answer``.

    The file is JSONL, Parquet or Arrow, or the directory that ``save_to_disk`` of Hugging Face's datasets wrote.

    In verl's layout ``prompt`` is a list of chat messages and the answer is ``reward_model.ground_truth``; of several
    answers the first is the answer, and all are ``extra["answers"]``. Without an
    ``id`` a prompt is named by the number of its row. Other fields are kept in ``extra``, but for what JSON cannot
    hold, such as images.

    Raises:
        MissingError, InputError: names the file, the line or row, and the field.
    """
    rows = list(read_rows(path, "prompts"))
    prompts = [_prompt(place, row, number) for number, (place, row) in enumerate(rows)]
    seen: dict[str, str] = {}
    for prompt, (place, _) in zip(prompts, rows, strict=True):
        if prompt.id in seen:
            raise InputError(f"{place}: id {prompt.id!r} stands already at {seen[prompt.id]}; ids must be unique")
        seen[prompt.id] = place
    return prompts


def _prompt(place: str, given: Mapping[str, Any], number: int) -> Prompt:
    row = {name: value for name, value in given.items() if not absent(value)}
    text, messages, ids = row.get("prompt"), row.get("messages"), row.get("prompt_ids")
    if isinstance(text, (list, tuple)):
        text, messages = None, text
    if text is None and messages is None and ids is None:
        held = ", ".join(list(map(str, row))[:12]) or "no field"
        raise InputError(f"{place}: no prompt; expected prompt (text or chat messages) or messages, got {held}")
    if text is not None and not isinstance(text, str):
        raise InputError(f"{place}: prompt is {type(text).__name__}; expected text or a list of chat messages")
    if messages is not None:
        check_messages(place, messages)
    if ids is not None:
        good = isinstance(ids, (list, tuple)) and len(ids) > 0
        if not good or not all(type(token) is int and token >= 0 for token in ids):
            raise InputError(f"{place}: prompt_ids must be a non-empty list of token ids")
    reference, reward_model = row.get("answer"), row.get("reward_model")
    if reference is None and isinstance(reward_model, Mapping):
        reference = reward_model.get("ground_truth")
    answers = reference_answers(reference)
    used = FIELDS if answers else FIELDS[:-1]
    return Prompt(
        id=str(number) if row.get("id") is None else str(row["id"]),
        text=text,
        messages=None if messages is None else tuple(messages),
        ids=None if ids is None else tuple(ids),
        answer=answers[0] if answers else None,
        extra={name: value for name, value in row.items() if name not in used and _in_json(value)} | several(answers),
    )


def _in_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def check_messages(place: str, messages: Any) -> None:
    """Refuse what is no non-empty list of chat messages.

    Raises:
        InputError: names the place.
    """
    good = isinstance(messages, (list, tuple)) and len(messages) > 0
    if not good or not all(
        isinstance(m, Mapping) and "role" in m and ("content" in m or "tool_calls" in m) for m in messages
    ):
        raise InputError(f"{place}: messages must be a non-empty list of objects with role and content")


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
    """Token ids for every prompt: messages through the chat template, text as it stands, ids without their padding.

    Raises:
        InputError: there is no tokenizer, no chat template for messages, or a prompt encodes to nothing.
    """
    encoded = []
    lost: dict[str, list[str]] = {}
    for prompt in prompts_without_padding(prompts, special_ids_of(tokenizer)):
        if prompt.ids is not None:
            encoded.append(prompt)
            continue
        if tokenizer is None:
            raise InputError(f"prompt {prompt.id!r}: is text, and the student has no tokenizer; give --tokenizer")
        if prompt.messages is not None:
            place = f"prompt {prompt.id!r}"
            text = render_messages(place, prompt.messages, tokenizer, variables=chat_variables(place, prompt.extra))
            lost[prompt.id] = lost_words(prompt.messages, text)
            ids = ids_of(text, tokenizer)
        else:
            ids = encode_text(prompt.text or "", tokenizer)
        if not ids:
            raise InputError(f"prompt {prompt.id!r}: encodes to no token")
        encoded.append(dataclasses.replace(prompt, ids=tuple(ids)))
    tell_of_turns([prompt.messages for prompt in prompts if prompt.ids is None], "prompts")
    tell_of_lost_words(lost, "prompts")
    return encoded


def tell_of_turns(chats: Sequence[Sequence[Mapping[str, Any]] | None], what: str) -> None:
    """Say how many prompts end in a turn of the assistant, which the student goes on with."""
    begun = sum(bool(chat) and is_begun(chat or ()) for chat in chats)
    if begun:
        warn(f"{what}: {begun} of {len(chats)} end in a turn of the assistant, which the response goes on with")


def tell_of_lost_words(lost: Mapping[str, Sequence[str]], what: str) -> None:
    """Say of how many prompts the chat template left out words.

    Args:
        lost: by prompt, the words of its messages that are not in its rendering.
    """
    some = {name: words for name, words in lost.items() if words}
    if some:
        name, words = next(iter(some.items()))
        warn(
            f"{what}: the chat template leaves out words of the messages of {len(some)} of {len(lost)}: of {name!r} "
            f"{', '.join(map(repr, words[:3]))}{' and more' if len(words) > 3 else ''}; the student reads none of them"
        )


def is_begun(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt ends in a turn of the assistant, which a response goes on with."""
    return messages[-1].get("role") == "assistant" and bool(messages[-1].get("content"))


def ids_of(text: str, tokenizer: Any, *, specials: bool = False) -> list[int]:
    """Text as token ids.

    Args:
        specials: with what the tokenizer puts before or behind every text.

    Raises:
        InputError: the tokenizer refuses it, as one does that has no token for unknown words.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=specials)["input_ids"]
    except BaseException as error:  # of tokenizers of many kinds
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        shown = text if len(text) <= 40 else text[:39] + "…"
        raise InputError(
            f"tokenizer {getattr(tokenizer, 'name_or_path', '')}: cannot encode {shown!r} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    return ids


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Text as it stands, with what the tokenizer puts before every text; a BOS that is already there is not doubled."""
    bos = tokenizer.bos_token
    written = bool(bos) and text.startswith(bos)
    return ids_of(text, tokenizer, specials=not written)


def encode_messages(
    place: str,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
) -> list[int]:
    """Chat messages as token ids: rendered, and encoded without what a tokenizer puts before every text.

    Raises:
        InputError: as :func:`render_messages`.
    """
    text = render_messages(
        place, messages, tokenizer, template=template, variables=variables, generation_prompt=generation_prompt
    )
    return ids_of(text, tokenizer)


def render_messages(
    place: str,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
) -> str:
    """Chat messages through a chat template, with the generation prompt unless told otherwise.

    Content comes as the template takes it, see :mod:`opd_probe.rollouts.chat`. A last turn of the assistant is left
    open and gets no generation prompt, as servers and TRL do it.

    Args:
        template: Jinja source; None: the tokenizer's own.
        variables: more that the template may use, such as ``enable_thinking``.

    Raises:
        InputError: the tokenizer has no chat template, the template refuses the messages, or a part of them is no text.
    """
    if template is None and getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"{place}: chat messages, and the tokenizer has no chat template; give prompts as text")

    def render(given: Sequence[Mapping[str, Any]], *, opened: bool, **more: Any) -> str:
        made: str = tokenizer.apply_chat_template(
            list(given),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation_prompt and not opened,
            continue_final_message=opened,
            **more,
        )
        return made

    key = json.dumps([template or tokenizer.chat_template], default=str)
    fit = fitted(place, messages, key, lambda given: render(given, opened=False))
    try:
        return render(fit, opened=generation_prompt and is_begun(fit), **(variables or {}))
    except Exception as error:  # an expression in a template may raise anything
        raise InputError(f"{place}: the chat template refuses the messages ({' '.join(str(error).split())})") from None
