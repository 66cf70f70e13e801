"""Token ids for rollouts that came as text."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.rollouts.chat import chat_variables, lost_words
from opd_probe.rollouts.padding import special_ids_of, without_padding
from opd_probe.rollouts.prompts import encode_text, ids_of, render_messages, tell_of_lost_words, tell_of_turns
from opd_probe.rollouts.restoring import Restored, Restorer
from opd_probe.types import Rollout

STRIPPED = {"special_tokens": "stripped"}
"""What importers put into ``Rollout.extra`` of text that was decoded without its special tokens."""


def encode_rollouts(rollouts: Sequence[Rollout], tokenizer: Any, eos_ids: Sequence[int] = ()) -> list[Rollout]:
    """Token ids for rollouts that came as text; the others stay as they are, but for padding, which is stripped.

    A prompt string is encoded as it stands, messages through the chat template; a prompt that was decoded without its
    special tokens gets them back where the template says how, see :mod:`opd_probe.rollouts.restoring`. The response
    is encoded without special tokens, behind its prompt where the tokenizer would begin it with a token that nobody
    sampled, EOS appended only when its finish reason is ``stop``. For padding see
    :mod:`opd_probe.rollouts.padding`.

    Args:
        eos_ids: those of the student's generation_config, which may be more than its tokenizer has.

    Raises:
        InputError: a rollout is text and there is no tokenizer, or no chat template for messages.
    """
    encoded = []
    prompts, responses = _Prompts(tokenizer), _Responses(tokenizer)
    for rollout in rollouts:
        if not _is_text(rollout):
            encoded.append(rollout)
            continue
        if tokenizer is None:
            raise InputError(f"rollout {rollout.id!r}: is text, and the student has no tokenizer; give --tokenizer")
        prompt, known, text = prompts.of(rollout)
        response = responses.of(rollout.response or "", text)
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
    return without_padding(encoded, special_ids_of(tokenizer, eos_ids))


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
        self._restorer = Restorer(tokenizer)
        self._restored: dict[str, Restored | None] = {}
        self._chats: list[Sequence[Mapping[str, Any]]] = []
        self._lost: dict[str, list[str]] = {}

    def of(self, rollout: Rollout) -> tuple[list[int], dict[str, Any], str]:
        """The ids, the ``messages`` where the text turned out to be made of them, and the text that is encoded."""
        if rollout.prompt is None:
            text = self._rendered(rollout)
            return ids_of(text, self._tokenizer), {}, text
        if rollout.extra.get("special_tokens") == STRIPPED["special_tokens"]:
            if rollout.prompt not in self._restored:
                self._restored[rollout.prompt] = self._restorer.restore(rollout.prompt)
            if (restored := self._restored[rollout.prompt]) is not None:
                return restored.ids, {"messages": restored.messages}, self._tokenizer.decode(restored.ids)
        return encode_text(rollout.prompt, self._tokenizer), {}, rollout.prompt

    def _rendered(self, rollout: Rollout) -> str:
        place, messages = f"rollout {rollout.id!r}", rollout.extra.get("messages") or ()
        text = render_messages(place, messages, self._tokenizer, variables=chat_variables(place, rollout.extra))
        self._chats.append(messages)
        self._lost[rollout.id] = lost_words(messages, text)
        return text

    def warn(self) -> None:
        """Say how many prompts are read as they stand though they lack their special tokens, how many go on with a turn
        of the assistant, and of how many the template left out words."""
        tell_of_turns(self._chats, "rollouts: prompts")
        tell_of_lost_words(self._lost, "rollouts")
        lost = sum(found is None for found in self._restored.values())
        if lost:
            warnings.warn(
                f"{lost} of {len(self._restored)} prompts were written without their special tokens, and the student's "
                "chat template does not say where these were; read as they stand, they may not be what the student saw",
                OpdProbeWarning,
                stacklevel=3,
            )


class _Responses:
    """Responses as ids. Tokenizers of the SentencePiece family begin every text with a space, which a response has none
    of: it goes on with its prompt."""

    ANCHORS = ("\n", ":")
    """What a response is put behind where its prompt will not do: pieces that merge with few others."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._begins_texts: bool | None = None

    def of(self, response: str, prompt: str) -> list[int]:
        """The ids of a response behind its prompt, whose own ids must stay what they are; else by itself."""
        alone = self._ids(response)
        if self._begins_texts is None:
            self._begins_texts = any(self._behind("a", anchor) not in (None, self._ids("a")) for anchor in self.ANCHORS)
        if not self._begins_texts:
            return alone
        tries = (self._behind(response, before) for before in (prompt, *self.ANCHORS))
        return next((ids for ids in tries if ids is not None), alone)

    def _behind(self, text: str, before: str) -> list[int] | None:
        """The ids of a text behind another; None where the two share a token, as an unknown one between them may be."""
        first, both = self._ids(before), self._ids(before + text)
        if first and first[-1] == self._tokenizer.unk_token_id:
            return None
        return both[len(first) :] if both[: len(first)] == first else None

    def _ids(self, text: str) -> list[int]:
        return ids_of(text, self._tokenizer)
