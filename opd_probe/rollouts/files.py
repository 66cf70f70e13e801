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
from opd_probe.rollouts.rows import Row, read_rows, write_rows
from opd_probe.types import Rollout

TEXT_FIELDS = ("prompt", "response", "finish_reason", "answer")
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
)


def read_rollouts(path: str | Path) -> list[Rollout]:
    """Read a rollout file (JSONL or Parquet), one rollout per row.

    ``prompt_ids`` and ``response_ids`` are required unless the row has text, see :func:`encode_rollouts`. Fields
    that are not ours are kept in ``extra``.

    Raises:
        MissingError, InputError: names the file, the line or row, and the field.
    """
    return _rollouts(read_rows(path, "rollouts"))


def rollouts_from_dicts(rows: Iterable[Mapping[str, Any]]) -> list[Rollout]:
    """Rollouts from dictionaries with the fields of a rollout file.

    Raises:
        InputError: names the row and the field; or there are no rows.
    """
    rollouts = _rollouts((f"rollouts, row {number}", row) for number, row in enumerate(rows))
    if not rollouts:
        raise InputError("rollouts: empty; expected at least one with prompt_ids and response_ids")
    return rollouts


def _rollouts(rows: Iterable[Row]) -> list[Rollout]:
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
            "rollouts: sampled ids and re-tokenised text in one list are never pooled; put them into two files"
        )
    return rollouts


def _rollout(place: str, row: Mapping[str, Any], number: int) -> Rollout:
    has_ids = row.get("prompt_ids") is not None or row.get("response_ids") is not None
    has_text = row.get("response") is not None and (
        row.get("prompt") is not None or row.get("messages") is not None
    )
    if not has_ids and not has_text:
        raise InputError(f"{place}: no prompt_ids and response_ids; expected both, or prompt (or messages) and response")
    source = row.get("token_source") or ("sampled_ids" if has_ids else "retokenized")
    if source not in ("sampled_ids", "retokenized"):
        raise InputError(f"{place}: token_source is {source!r}; expected sampled_ids or retokenized")
    response = _ids(place, row, "response_ids") if has_ids else ()
    for name in TEXT_FIELDS[:3]:
        if row.get(name) is not None and not isinstance(row[name], str):
            raise InputError(f"{place}: {name} is {type(row[name]).__name__}; expected text")
    return Rollout(
        id=str(number) if row.get("id") is None else str(row["id"]),
        prompt_ids=_ids(place, row, "prompt_ids") if has_ids else (),
        response_ids=response,
        prompt_id=None if row.get("prompt_id") is None else str(row["prompt_id"]),
        response_mask=_mask(place, row, len(response)),
        step=_step(place, row),
        prompt=row.get("prompt"),
        response=row.get("response"),
        answer=None if row.get("answer") is None else str(row["answer"]),
        score=_score(place, row),
        logprobs=_logprobs(place, row, len(response)),
        finish_reason=row.get("finish_reason"),
        token_source=source,
        extra={key: value for key, value in row.items() if key not in FIELDS or key == "messages"},
    )


def _sequence(place: str, row: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = row[name]
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        raise InputError(f"{place}: {name} is {type(value).__name__}; expected a list")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _ids(place: str, row: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if row.get(name) is None:
        raise InputError(f"{place}: no {name}; expected a list of token ids")
    values = _sequence(place, row, name)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{place}: {name} holds {value!r}; expected whole numbers")
        if value < 0:
            raise InputError(f"{place}: {name} holds the negative id {value}; expected ids of the tokenizer")
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
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise InputError(f"{place}: logprobs holds {value!r}; expected numbers or null")
        numbers.append(math.nan if value is None else float(value))
    return tuple(numbers)


def _step(place: str, row: Mapping[str, Any]) -> int | None:
    step = row.get("step")
    if step is None or (isinstance(step, float) and math.isnan(step)):
        return None
    if isinstance(step, bool) or not isinstance(step, (int, float)) or step != int(step):
        raise InputError(f"{place}: step is {step!r}; expected a whole number")
    return int(step)


def _score(place: str, row: Mapping[str, Any]) -> float | None:
    score = row.get("score")
    if score is None:
        return None
    if isinstance(score, (bool, int, float)):
        return None if math.isnan(score) else float(score)
    raise InputError(f"{place}: score is {score!r}; expected a number")


def encode_rollouts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[Rollout]:
    """Token ids for rollouts that came as text; the others stay as they are.

    A prompt string is encoded as it stands, messages through the chat template; the response without special
    tokens, EOS appended only when its finish reason is ``stop``. Re-tokenised ids are not what was sampled.

    Raises:
        InputError: a rollout is text and there is no tokenizer, or no chat template for messages.
    """
    from opd_probe.rollouts.prompts import encode_messages

    encoded = []
    for rollout in rollouts:
        if rollout.prompt_ids or rollout.response_ids or rollout.response is None:
            encoded.append(rollout)
            continue
        if tokenizer is None:
            raise InputError(f"rollout {rollout.id!r}: is text, and the student has no tokenizer; give --tokenizer")
        messages = rollout.extra.get("messages")
        if rollout.prompt is not None:
            prompt = tokenizer(rollout.prompt)["input_ids"]
        else:
            prompt = encode_messages(f"rollout {rollout.id!r}", messages or [], tokenizer)
        response = tokenizer(rollout.response, add_special_tokens=False)["input_ids"]
        if rollout.finish_reason == "stop" and tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
        changed = {"prompt_ids": tuple(prompt), "response_ids": tuple(response), "token_source": "retokenized"}
        encoded.append(dataclasses.replace(rollout, **changed))
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
        row[name] = None if row[name] is None else [int(value) for value in row[name]]
    if rollout.logprobs is not None:
        row["logprobs"] = [None if math.isnan(value) else float(value) for value in rollout.logprobs]
    row["messages"] = rollout.extra.get("messages")
    return row


def prompt_key(rollout: Rollout) -> str:
    """What groups the rollouts of one prompt: its ``prompt_id``, else a hash of its ids."""
    if rollout.prompt_id is not None:
        return rollout.prompt_id
    ids = np.asarray(rollout.prompt_ids, dtype="<i8")
    return "prompt-" + hashlib.sha256(ids.tobytes()).hexdigest()[:16]


def rollouts_digest(rollouts: Iterable[Rollout]) -> str:
    """sha256 over everything of the rollouts that reaches a trace."""
    digest = hashlib.sha256()
    for rollout in rollouts:
        row = _row(rollout)
        row["prompt_id"] = prompt_key(rollout)
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
