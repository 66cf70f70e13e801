"""wandb's ``run-<id>.wandb`` of a run, online or offline: records, of which ``history`` holds a row of what was logged.

Read in 0.31, which no longer brings a reader. A value is JSON text; ``NaN`` and ``Infinity`` stand bare in it.
``_step`` counts calls where the trainer named no step, as transformers, which logs ``train/global_step``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd_probe.runs.training_logs.form import LogFormat, Row, starts_with
from opd_probe.runs.training_logs.records import fields, message_in, records, text_in, whole_in
from opd_probe.texts import parse_json

MAGIC = b":W&B"
_HISTORY, _ITEM, _STEP, _KEY, _NESTED, _VALUE = 2, 1, 2, 1, 2, 16
"""Numbers of fields: of a record, of its history, of an item of that."""


def _rows(path: Path, _run: str) -> Iterator[Row]:
    for record in records(path):
        history = message_in(fields(record), _HISTORY)
        if history is None:
            continue
        step = message_in(history, _STEP)
        row: dict[str, Any] = {} if step is None else {"_step": whole_in(step, 1)}
        for item in history.get(_ITEM, []):
            held = fields(item) if isinstance(item, bytes) else {}
            nested = [part.decode(errors="replace") for part in held.get(_NESTED, []) if isinstance(part, bytes)]
            row[text_in(held, _KEY) or ".".join(nested)] = parse_json(text_in(held, _VALUE) or "null")
        yield row


FORMAT = LogFormat(
    "wandb",
    "wandb's .wandb file",
    lambda path: starts_with(path, MAGIC),
    _rows,
    inside=("*.wandb", "latest-run/*.wandb", "wandb/latest-run/*.wandb", "*-run-*/*.wandb", "wandb/*-run-*/*.wandb"),
)
