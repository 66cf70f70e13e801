"""Responses of a vLLM server that was asked with ``return_token_ids``: completions and chat completions.

Read in ``vllm/entrypoints/openai``: a completion's choices hold ``prompt_token_ids`` and ``token_ids``; a chat
completion holds ``prompt_token_ids`` once. Lines of a batch's output hold the response under ``response.body``. A log-
prob of −9999 stands for one that JSON cannot hold, and is unknown here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.types import Rollout

FLOOR = -9999.0


def _body(row: Mapping[str, Any]) -> Mapping[str, Any]:
    response = row.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    return body if isinstance(body, Mapping) else row


def _recognises(row: Mapping[str, Any]) -> bool:
    return "choices" in _body(row)


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    body = _body(row)
    if "choices" not in body:
        raise InputError(f"{where.place}: no choices; expected a response of a completions endpoint")
    choices = fields.sequence(where.place, body, "choices")
    for index, choice in enumerate(choices):
        place = f"{where.place}, choice {index}"
        if not isinstance(choice, Mapping):
            raise InputError(f"{place}: expected an object, got {type(choice).__name__}")
        name = where.name if len(choices) == 1 else f"{where.name}/{index}"
        yield _choice(Where(place, name, where.step), choice, body)


def _choice(where: Where, choice: Mapping[str, Any], body: Mapping[str, Any]) -> Rollout | Skipped:
    place, finish = where.place, fields.text(where.place, choice, "finish_reason")
    if finish == "abort":
        return Skipped("aborted")
    both = {"prompt_token_ids": body.get("prompt_token_ids"), **{k: v for k, v in choice.items() if v is not None}}
    for name in ("prompt_token_ids", "token_ids"):
        if both.get(name) is None:
            raise InputError(f"{place}: no {name}; ask the server with return_token_ids: true")
    message = choice.get("message")
    prompt, response = (fields.token_ids(place, both, name) for name in ("prompt_token_ids", "token_ids"))
    return Rollout(
        id=where.name,
        prompt_ids=prompt,
        response_ids=response,
        step=where.step,
        response=fields.text(place, *((message, "content") if isinstance(message, Mapping) else (choice, "text"))),
        logprobs=_logprobs(place, choice.get("logprobs"), len(prompt), len(response)),
        finish_reason="length" if finish == "length" else finish and "stop",
        sampler=_sampler(body.get("system_fingerprint")),
        extra={name: body[name] for name in ("id", "model") if body.get(name) is not None},
    )


def _sampler(fingerprint: Any) -> str | None:
    """Name and version, from what vLLM calls itself: vllm-0.32.0-… of a build."""
    found = re.match(r"vllm-([0-9][\w.]*)", fingerprint) if isinstance(fingerprint, str) else None
    return found and f"vllm {found.group(1)}"


def _logprobs(place: str, given: Any, n_prompt: int, n_response: int) -> tuple[float, ...] | None:
    """Of the response; with ``echo`` those of the prompt come first."""
    if not isinstance(given, Mapping):
        return None
    values: list[Any] = []
    for name in ("content", "token_logprobs"):
        if given.get(name) is not None:
            entries = fields.sequence(place, given, name)
            values = [entry.get("logprob") if isinstance(entry, Mapping) else entry for entry in entries]
            break
    else:
        return None
    if len(values) == n_prompt + n_response:
        values = values[n_prompt:]
    numbers = fields.logprobs(place, {"logprobs": values}, "logprobs", n_response, "token_ids")
    return numbers and tuple(value if value > FLOOR else math.nan for value in numbers)


SOURCE = Source(
    "openai",
    "choices with token_ids, as vLLM gives with return_token_ids",
    (),
    _rollouts,
    _recognises,
    step_of=step_of_folder,
)
