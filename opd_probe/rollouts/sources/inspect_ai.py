"""inspect_ai's ``.eval`` log: the chat messages and the text of what a model answered, without ids.

Read in 0.3.285. A sample has its messages, of which the last is the answer, and ``output``; the student's chat
template renders what precedes it. Long text stands once in ``attachments`` and is named where it belongs. With
``logprobs`` its ``hf/`` provider stores those of the most probable token at each place, not of the sampled one, and no
provider says ids, so that they are never the sampler's. A verdict is a number, or C, P, I and N for 1, ½, 0 and 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.prompts import check_messages
from opd_probe.rollouts.sampling import sampling_of
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.types import Rollout

VERDICTS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
FINISH = {"stop": "stop", "max_tokens": "length"}
_ATTACHED = "attachment://"


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    if row.get("error") is not None:
        yield Skipped("that ended in an error")
        return
    messages = [_message(place, message, row.get("attachments")) for message in fields.sequence(place, row, "messages")]
    answered = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if answered != [len(messages) - 1] or any(message["role"] == "tool" for message in messages):
        yield Skipped("of several turns as text, or without an answer" if messages else "without messages")
        return
    if any(isinstance(part, Mapping) and part.get("type") == "reasoning" for part in _parts(messages[-1])):
        yield Skipped("whose thinking stands apart, so that the context of the rest is not known")
        return
    check_messages(place, messages)
    text = "".join(_texts(place, messages[-1]))
    answers = fields.reference_answers(row.get("target"))
    name, number = fields.text_or_number(place, row, "id", whole=True), fields.whole_number(place, row, "epoch")
    yield Rollout(
        id=where.name if name is None else f"{name}/{number}",
        prompt_ids=(),
        response_ids=(),
        prompt_id=name,
        step=where.step,
        response=text,
        answer=answers[0] if answers else None,
        score=_score(place, row),
        finish_reason=FINISH.get(_stop_reason(row)),
        token_source="retokenized",
        sampling=_sampling(row),
        extra={"messages": [{"role": m["role"], "content": m["content"]} for m in messages[:-1]], "epoch": number,
               **({"metadata": fields.scalars(row["metadata"])} if isinstance(row.get("metadata"), Mapping) else {}),
               **fields.several(answers)},
    )  # fmt: skip


def _message(place: str, message: Any, attachments: Any) -> dict[str, Any]:
    """A message with the text that stands elsewhere put back."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"{place}: messages holds {type(message).__name__}; expected objects with role and content")
    held = attachments if isinstance(attachments, Mapping) else {}

    def whole(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_ATTACHED):
            name = value.removeprefix(_ATTACHED)
            if not isinstance(held.get(name), str):
                raise InputError(f"{place}: attachments has no {name!r}, which a message names; copy the log again")
            return held[name]
        if isinstance(value, Mapping):
            return {name: whole(entry) for name, entry in value.items()}
        return [whole(entry) for entry in value] if isinstance(value, list) else value

    return {"role": message["role"], "content": whole(message.get("content"))}


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else []


def _texts(place: str, message: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(message["content"], str):
        yield message["content"]
        return
    for part in _parts(message):
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise InputError(f"{place}: the answer has a part that is no text; expected text alone")
        yield part["text"]


def _score(place: str, row: Mapping[str, Any]) -> float | None:
    """Of a sample that one scorer judged."""
    scores = row.get("scores")
    if not isinstance(scores, Mapping) or len(scores) != 1:
        return None
    (score,) = scores.values()
    value = score.get("value") if isinstance(score, Mapping) else None
    if isinstance(value, str):
        return VERDICTS.get(value)
    return fields.number(place, {"score": value}, "score") if isinstance(value, (bool, int, float)) else None


def _stop_reason(row: Mapping[str, Any]) -> str:
    output = row.get("output")
    choices = output.get("choices") if isinstance(output, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return str(first.get("stop_reason")) if isinstance(first, Mapping) else ""


def _sampling(row: Mapping[str, Any]) -> dict[str, float]:
    """As the log's head says it, for the model and then for the plan."""
    header = row.get("header")
    found: dict[str, float] = {}
    for name, key in (("eval", "model_generate_config"), ("plan", "config")):
        part = header.get(name) if isinstance(header, Mapping) else None
        held = part.get(key) if isinstance(part, Mapping) else None
        found |= sampling_of(held) if isinstance(held, Mapping) else {}
    return found


SOURCE = Source(
    "inspect-ai",
    "samples with epoch, messages, output",
    ("epoch", "messages", "output"),
    _rollouts,
    step_of=step_of_folder,
)
