"""lighteval's ``details/<model>/<time>/details_{task}_{time}.parquet``: ids of prompts and responses, as in batches.

Read in 0.13. Rows come sorted by the length of their prompts, so that ``doc.id`` names them. Prompts are padded on
the left, ``padded_tokens_count`` tokens of each; responses of a batch on the right, behind the EOS that they ended in
and often with that same token. Models behind an API have text in place of ids. ``truncated_tokens_count`` compares
characters with tokens and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.padding import ENDS_PADDED
from opd_probe.rollouts.prompts import check_messages
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.texts import real_path
from opd_probe.types import Rollout

GENERATIVE = "GENERATIVE"


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place, doc, response = where.place, _struct(where.place, row, "doc"), _struct(where.place, row, "model_response")
    if GENERATIVE not in (_list(place, doc, "sampling_methods") or [GENERATIVE]):
        yield Skipped("of a task that samples nothing")
        return
    texts = _list(place, response, "text")
    sampled = _list(place, response, "output_tokens")
    prompt = _list(place, response, "input_tokens")
    if sampled and texts and len(sampled) != len(texts):
        raise InputError(f"{place}: output_tokens has {len(sampled)} entries for {len(texts)} of text")
    told, messages = _prompt(place, response, doc)
    if not (sampled and prompt) and told is None and messages is None:
        yield Skipped("with neither ids nor the prompt's text")
        return
    name = fields.text_or_number(place, doc, "id", whole=True) or where.name
    answers, metrics = _answers(doc), _metrics(row)
    count = len(sampled) or len(texts)
    for number in range(count):
        ids = bool(sampled and prompt)
        extra: dict[str, Any] = {**metrics, **fields.several(answers), "task_name": doc.get("task_name")}
        if ids:
            extra |= _padding(place, response, len(prompt))
        elif messages is not None:
            extra["messages"] = messages
        yield Rollout(
            id=f"{name}/{number}" if count > 1 else name,
            prompt_id=name,
            prompt_ids=fields.token_ids(place, response, "input_tokens") if ids else (),
            response_ids=fields.token_ids(place, {"output_tokens": sampled[number]}, "output_tokens") if ids else (),
            step=where.step,
            prompt=None if ids else told,
            response=fields.text(place, {"text": texts[number]}, "text") if texts else None,
            answer=answers[0] if answers else None,
            score=next(iter(metrics.values())) if len(metrics) == 1 and count == 1 else None,
            token_source="sampled_ids" if ids else "retokenized",
            extra=extra,
        )


def _struct(place: str, row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row.get(name)
    if not isinstance(value, Mapping):
        raise InputError(f"{place}: {name} is {type(value).__name__}; expected an object, as lighteval writes it")
    return value


def _list(place: str, row: Mapping[str, Any], name: str) -> list[Any]:
    return [] if row.get(name) is None else list(fields.sequence(place, row, name))


def _prompt(place: str, response: Mapping[str, Any], doc: Mapping[str, Any]) -> tuple[str | None, list[Any] | None]:
    """The prompt of a model without ids: text, or chat messages."""
    given = response.get("input")
    if isinstance(given, list):
        check_messages(place, given)
        return None, given
    return (given, None) if isinstance(given, str) else (fields.text(place, doc, "query"), None)


def _padding(place: str, response: Mapping[str, Any], length: int) -> dict[str, Any]:
    """That of the prompt as a mask, and that the response may have some."""
    padded = fields.whole_number(place, response, "padded_tokens_count") or 0
    if not 0 <= padded < max(length, 1):
        raise InputError(f"{place}: padded_tokens_count is {padded}; expected 0 to {length}, the tokens of the prompt")
    mask = {"prompt_attention_mask": [0] * padded + [1] * (length - padded)} if padded else {}
    return {**mask, ENDS_PADDED: True}


def _answers(doc: Mapping[str, Any]) -> tuple[str, ...]:
    choices, gold = doc.get("choices"), doc.get("gold_index")
    wanted = gold if isinstance(gold, list) else [gold]
    if not isinstance(choices, list):
        return ()
    held = [choices[at] for at in wanted if isinstance(at, int) and 0 <= at < len(choices)]
    return fields.reference_answers(held)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    held = row.get("metric")
    numbers = held.items() if isinstance(held, Mapping) else ()
    return {str(name): float(value) for name, value in numbers if isinstance(value, (bool, int, float))}


def _step(path: Path, pattern: re.Pattern[str] | None = None) -> int | None:
    """That of the model's folder, which holds one for each time."""
    return step_of_folder(real_path(path).parent, pattern)


SOURCE = Source("lighteval", "doc, model_response", ("doc", "model_response"), _rollouts, step_of=_step)
