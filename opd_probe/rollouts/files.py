"""Rollout files: reading with one-line errors, writing, and digests."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.rollouts.reading import checked_set, read_rollout_set, remarks
from opd_probe.rollouts.rows import absent, write_rows
from opd_probe.rollouts.sources import Where
from opd_probe.rollouts.sources.native import FIELDS, rollout_of
from opd_probe.types import Rollout


def read_rollouts(path: str | Path) -> list[Rollout]:
    """Read a rollout file of any kind of :data:`opd_probe.rollouts.sources.SOURCES`, or a directory of them.

    Fields that are not ours are kept in ``extra``. Entries that are no rollouts are left out with a warning.

    Raises:
        MissingError, InputError: names the file, the line or row, and the field.
    """
    found = read_rollout_set([path])
    for line in remarks(found):
        warnings.warn(line, OpdProbeWarning, stacklevel=2)
    return found.rollouts


def rollouts_from_dicts(rows: Iterable[Mapping[str, Any]]) -> list[Rollout]:
    """Rollouts from dictionaries with the fields of a rollout file of ours.

    Raises:
        InputError: names the row and the field; or there are no rows.
    """
    rollouts = []
    for number, row in enumerate(rows):
        place = f"rollouts, row {number}"
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: expected an object with prompt_ids and response_ids, got {type(row).__name__}")
        held = {name: value for name, value in row.items() if not absent(value)}
        rollouts.append((place, rollout_of(Where(place, str(number)), held)))
    if not rollouts:
        raise InputError("rollouts: empty; expected at least one with prompt_ids and response_ids")
    return checked_set(rollouts, "rollouts")


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
    row["sampling"] = dict(rollout.sampling) or None
    return row


def _plain_messages(messages: Any) -> bool:
    """Whether a Parquet column can hold them whatever the others look like; parts and tool calls go into JSON."""
    given = messages if isinstance(messages, (list, tuple)) else ()
    return all(isinstance(one, Mapping) and all(isinstance(value, str) for value in one.values()) for one in given)


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
        # What a trace says of states does not depend on how they came about, nor on what is carried along.
        del row["sampler"], row["sampling"]
        row["extra"] = None
        if row["response_ids"]:
            row["messages"] = None
        row["prompt_id"] = prompt_key(rollout)
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
