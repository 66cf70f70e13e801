"""Rollout files: reading with one-line errors, writing, and digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.errors import InputError
from opd_probe.rollouts.prompts import check_messages, encode_messages, encode_text
from opd_probe.rollouts.rows import Row, absent, read_rows, write_rows
from opd_probe.types import Rollout

FIELDS = (
    "id",
    "prompt_id",
    "step",
    "prompt_ids",
    "response_ids",
    "response_mask",
    "logprobs",
    "finish_reason",
    "prompt",
    "response",
    "messages",
    "answer",
    "score",
    "token_source",
    "sampler",
    "extra",
)

_LARGEST_ID = 2**62
"""Beyond, integers of 64 bits end; what a model knows is checked when it is known."""


def read_rollouts(path: str | Path) -> list[Rollout]:
    """Read a rollout file (JSONL or Parquet), one rollout per row.

    ``prompt_ids`` and ``response_ids`` are required unless the row has text, see :func:`encode_rollouts`. Fields
    that are not ours are kept in ``extra``.

    Raises:
        MissingError, InputError: names the file, the line or row, and the field.
    """
    return _rollouts(read_rows(path, "rollouts"), f"rollouts {path}")


def rollouts_from_dicts(rows: Iterable[Mapping[str, Any]]) -> list[Rollout]:
    """Rollouts from dictionaries with the fields of a rollout file.

    Raises:
        InputError: names the row and the field; or there are no rows.
    """
    rollouts = _rollouts(((f"rollouts, row {number}", row) for number, row in enumerate(rows)), "rollouts")
    if not rollouts:
        raise InputError("rollouts: empty; expected at least one with prompt_ids and response_ids")
    return rollouts


def _rollouts(rows: Iterable[Row], what: str) -> list[Rollout]:
    rollouts: list[Rollout] = []
    seen: dict[str, str] = {}
    for number, (place, row) in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: expected an object with prompt_ids and response_ids, got {type(row).__name__}")
        rollout = _rollout(place, row, number)
        if rollout.id in seen:
            raise InputError(f"{place}: id {rollout.id!r} stands already at {seen[rollout.id]}; ids must be unique")
        seen[rollout.id] = place
        rollouts.append(rollout)
    sources = {rollout.token_source for rollout in rollouts}
    if len(sources) > 1:
        raise InputError(
            f"{what}: holds sampled ids and text to be re-tokenised, which are never pooled; make two files of it"
        )
    return rollouts


def _rollout(place: str, given: Mapping[str, Any], number: int) -> Rollout:
    row = {name: value for name, value in given.items() if not absent(value)}
    has_ids = "prompt_ids" in row or "response_ids" in row
    if not has_ids:
        row = _text_row(place, row)
    source = row.get("token_source", "sampled_ids" if has_ids else "retokenized")
    if source == "sampled_ids" and not has_ids:
        raise InputError(f"{place}: token_source is 'sampled_ids', and the row has no ids; expected both")
    if source not in ("sampled_ids", "retokenized"):
        raise InputError(f"{place}: token_source is {source!r}; expected sampled_ids or retokenized")
    response = _ids(place, row, "response_ids") if has_ids else ()
    for name in ("prompt", "response", "finish_reason", "sampler"):
        if name in row and not isinstance(row[name], str):
            raise InputError(f"{place}: {name} is {type(row[name]).__name__}; expected text")
    return Rollout(
        id=_name(place, row, "id") or str(number),
        prompt_ids=_ids(place, row, "prompt_ids") if has_ids else (),
        response_ids=response,
        prompt_id=_name(place, row, "prompt_id"),
        response_mask=_mask(place, row, len(response)),
        step=_step(place, row),
        prompt=row.get("prompt"),
        response=row.get("response"),
        answer=_name(place, row, "answer"),
        score=_score(place, row),
        logprobs=_logprobs(place, row, len(response)),
        finish_reason=row.get("finish_reason"),
        token_source="sampled_ids" if source == "sampled_ids" else "retokenized",
        sampler=row.get("sampler"),
        extra=_extra(row),
    )


def _text_row(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row without ids as (prompt or messages) and response; the last assistant message may be the response."""
    if "messages" in row:
        check_messages(place, row["messages"])
        messages = list(row["messages"])
        if "response" not in row and messages[-1]["role"] == "assistant":
            row = {**row, "response": messages[-1]["content"], "messages": messages[:-1]}
    if "response" not in row or not ("prompt" in row or row.get("messages")):
        raise InputError(
            f"{place}: no prompt_ids and response_ids; expected both, or prompt (or messages) and response as text"
        )
    for name in ("response_mask", "logprobs"):
        if name in row:
            raise InputError(f"{place}: {name} without response_ids; expected ids, of which text says nothing")
    return row


def _name(place: str, row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, float) and name != "answer" and value.is_integer():
        value = int(value)  # a data frame makes floats of a column of ids in which one is missing
    if isinstance(value, (str, int, float, np.integer, np.floating)):
        return str(value)
    raise InputError(f"{place}: {name} is {type(value).__name__}; expected text or a number")


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    """Messages and what is not ours; ``extra`` is how :func:`write_rollouts` stored it, as JSON."""
    kept = {name: value for name, value in row.items() if name not in FIELDS or name in ("messages", "extra")}
    stored = kept.pop("extra", None)
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except ValueError:
            return {**kept, "extra": stored}
    if isinstance(stored, Mapping):
        return {**stored, **kept}
    return kept if stored is None else {**kept, "extra": stored}


def _sequence(place: str, row: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = row[name]
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        raise InputError(f"{place}: {name} is {type(value).__name__}; expected a list")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _ids(place: str, row: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if row.get(name) is None:
        raise InputError(f"{place}: no {name}; expected a list of token ids")
    values = _sequence(place, row, name)
    if not set(map(type, values)) <= {int}:  # JSON and Parquet hold no other integers; a program's lists may
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise InputError(f"{place}: {name} holds {value!r}; expected whole numbers")
        values = [int(value) for value in values]
    if values and min(values) < 0:
        raise InputError(f"{place}: {name} holds the negative id {min(values)}; expected ids of the tokenizer")
    if values and max(values) > _LARGEST_ID:
        raise InputError(f"{place}: {name} holds {max(values)}, which no tokenizer has; expected ids of the tokenizer")
    return tuple(values)


def _mask(place: str, row: Mapping[str, Any], length: int) -> tuple[int, ...] | None:
    if row.get("response_mask") is None:
        return None
    values = _sequence(place, row, "response_mask")
    if len(values) != length:
        raise InputError(f"{place}: response_mask has {len(values)} entries for {length} response_ids")
    for value in values:
        if value not in (0, 1):
            raise InputError(f"{place}: response_mask holds {value!r}; expected 0 or 1")
    return tuple(int(value) for value in values)


def _logprobs(place: str, row: Mapping[str, Any], length: int) -> tuple[float, ...] | None:
    if row.get("logprobs") is None:
        return None
    values = _sequence(place, row, "logprobs")
    if len(values) != length:
        raise InputError(f"{place}: logprobs has {len(values)} entries for {length} response_ids")
    numbers = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating, type(None))):
            raise InputError(f"{place}: logprobs holds {value!r}; expected numbers or null")
        numbers.append(math.nan if value is None else float(value))
    return tuple(numbers)


def _step(place: str, row: Mapping[str, Any]) -> int | None:
    step = row.get("step")
    if step is None:
        return None
    if isinstance(step, bool) or not isinstance(step, (int, float, np.integer)) or step != step // 1:
        raise InputError(f"{place}: step is {step!r}; expected a whole number")
    return int(step)


def _score(place: str, row: Mapping[str, Any]) -> float | None:
    score = row.get("score")
    if score is None:
        return None
    if isinstance(score, (bool, int, float, np.number, np.bool_)):
        return float(score)
    raise InputError(f"{place}: score is {score!r}; expected a number")


def encode_rollouts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[Rollout]:
    """Token ids for rollouts that came as text; the others stay as they are.

    A prompt string is encoded as it stands, messages through the chat template; the response without special
    tokens, EOS appended only when its finish reason is ``stop``. Re-tokenised ids are not what was sampled.

    Raises:
        InputError: a rollout is text and there is no tokenizer, or no chat template for messages.
    """
    encoded = []
    for rollout in rollouts:
        messages = rollout.extra.get("messages")
        text = rollout.token_source == "retokenized" and rollout.response is not None
        if not text or rollout.prompt_ids or rollout.response_ids or (rollout.prompt is None and not messages):
            encoded.append(rollout)
            continue
        place = f"rollout {rollout.id!r}"
        if tokenizer is None:
            raise InputError(f"{place}: is text, and the student has no tokenizer; give --tokenizer")
        if rollout.prompt is not None:
            prompt = encode_text(rollout.prompt, tokenizer)
        else:
            prompt = encode_messages(place, messages or (), tokenizer)
        response = tokenizer(rollout.response, add_special_tokens=False)["input_ids"]
        if rollout.finish_reason == "stop" and tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
        encoded.append(
            dataclasses.replace(
                rollout, prompt_ids=tuple(prompt), response_ids=tuple(response), token_source="retokenized"
            )
        )
    return encoded


def write_rollouts(path: str | Path, rollouts: Iterable[Rollout]) -> None:
    """Write a rollout file (.jsonl or .parquet), whole or not at all.

    Raises:
        InputError: another extension. OutputError: the file cannot be written.
    """
    write_rows(path, (_row(rollout) for rollout in rollouts), FIELDS)


def _row(rollout: Rollout) -> dict[str, Any]:
    row = {name: getattr(rollout, name, None) for name in FIELDS}
    for name in ("prompt_ids", "response_ids", "response_mask"):
        values = getattr(rollout, name)
        row[name] = None if values is None else [int(value) for value in values]
    if not row["prompt_ids"] and not row["response_ids"] and rollout.token_source == "retokenized":
        row["prompt_ids"] = row["response_ids"] = None  # text that waits for a tokenizer
    if rollout.logprobs is not None:
        row["logprobs"] = [None if math.isnan(value) else float(value) for value in rollout.logprobs]
    extra = dict(rollout.extra)
    if not row["response_ids"] or _plain_messages(extra.get("messages")):
        row["messages"] = extra.pop("messages", None)
    row["extra"] = json.dumps(extra, sort_keys=True, default=str) if extra else None
    return row


def _plain_messages(messages: Any) -> bool:
    """Whether a Parquet column can hold them whatever the others look like; parts and tool calls go into JSON."""
    return all(isinstance(value, str) for message in messages or () for value in message.values())


def prompt_key(rollout: Rollout) -> str:
    """What groups the rollouts of one prompt: its ``prompt_id``, else a hash of its ids, of its text without ids."""
    if rollout.prompt_id is not None:
        return rollout.prompt_id
    content = np.asarray(rollout.prompt_ids, dtype="<i8").tobytes()
    if not content:
        content = json.dumps([rollout.prompt, rollout.extra.get("messages")], default=str).encode()
    return "prompt-" + hashlib.sha256(content).hexdigest()[:16]


def rollouts_digest(rollouts: Iterable[Rollout]) -> str:
    """sha256 over everything of the rollouts that reaches a trace."""
    digest = hashlib.sha256()
    for rollout in rollouts:
        row = _row(rollout)
        del row["sampler"]  # what a trace says of states does not depend on it, nor on what is carried along
        row["extra"] = None
        if row["response_ids"]:
            row["messages"] = None
        row["prompt_id"] = prompt_key(rollout)
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
