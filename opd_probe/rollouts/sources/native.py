"""Our own rollout files, and what anyone may write in their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.chat import text_of
from opd_probe.rollouts.prompts import check_messages
from opd_probe.rollouts.sampling import sampling_of
from opd_probe.rollouts.sources.source import Source, Where
from opd_probe.texts import parse_json
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
    "sampling",
    "extra",
)


def _recognises(row: Mapping[str, Any]) -> bool:
    ids = "prompt_ids" in row or "response_ids" in row
    return ids or "messages" in row or ("response" in row and "prompt" in row)


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout]:
    yield rollout_of(where, row)


def rollout_of(where: Where, row: Mapping[str, Any]) -> Rollout:
    """A rollout from a row in our layout, whose null fields have been left out.

    Raises:
        InputError: names the place and the field.
    """
    place = where.place
    has_ids = "prompt_ids" in row or "response_ids" in row
    if not has_ids:
        row = _text_row(place, row)
    source = row.get("token_source", "sampled_ids" if has_ids else "retokenized")
    if source == "sampled_ids" and not has_ids:
        raise InputError(f"{place}: token_source is 'sampled_ids', and the row has no ids; expected both")
    if source not in ("sampled_ids", "retokenized"):
        raise InputError(f"{place}: token_source is {source!r}; expected sampled_ids or retokenized")
    response = fields.token_ids(place, row, "response_ids") if has_ids else ()
    step = fields.whole_number(place, row, "step")
    answers = fields.reference_answers(row.get("answer"))
    if row.get("answer") is not None and not answers:
        raise InputError(
            f"{place}: answer is {type(row['answer']).__name__}; expected text, a number or a list of them"
        )
    return Rollout(
        id=fields.text_or_number(place, row, "id", whole=True) or where.name,
        prompt_ids=fields.token_ids(place, row, "prompt_ids") if has_ids else (),
        response_ids=response,
        prompt_id=fields.text_or_number(place, row, "prompt_id", whole=True),
        response_mask=fields.mask(place, row, "response_mask", len(response)),
        step=where.step if step is None else step,
        prompt=fields.text(place, row, "prompt"),
        response=fields.text(place, row, "response"),
        answer=answers[0] if answers else None,
        score=fields.number(place, row, "score"),
        logprobs=fields.logprobs(place, row, "logprobs", len(response)),
        finish_reason=fields.text(place, row, "finish_reason"),
        token_source="sampled_ids" if source == "sampled_ids" else "retokenized",
        sampler=fields.text(place, row, "sampler"),
        sampling=sampling_of(row),
        extra={**_extra(row), **fields.several(answers)},
    )


def _text_row(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without ids as (prompt or messages) and response; the last assistant message may be the response."""
    if "messages" in row:
        check_messages(place, row["messages"])
        messages = list(row["messages"])
        if messages[-1]["role"] == "assistant":
            last = text_of(place, messages[-1])
            if (
                "response" not in row or row["response"] == last
            ):  # else it is the beginning that the response goes on with
                row = {**row, "response": last, "messages": messages[:-1]}
    if "response" not in row or not ("prompt" in row or row.get("messages")):
        raise InputError(
            f"{place}: no prompt_ids and response_ids; expected both, or prompt (or messages) and response as text"
        )
    for name in ("response_mask", "logprobs"):
        if name in row:
            raise InputError(f"{place}: {name} without response_ids; expected ids, of which text says nothing")
    return row


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    """Messages and what is not ours; ``extra`` is how a rollout file stores it, as JSON."""
    kept = {name: value for name, value in row.items() if name not in FIELDS or name in ("messages", "extra")}
    stored = kept.pop("extra", None)
    if isinstance(stored, str):
        try:
            stored = parse_json(stored)
        except ValueError:
            return {**kept, "extra": stored}
    if isinstance(stored, Mapping):
        return {**stored, **kept}
    return kept if stored is None else {**kept, "extra": stored}


SOURCE = Source(
    "opd-probe", "prompt_ids and response_ids, or prompt (or messages) and response", (), _rollouts, _recognises
)
