"""lm-eval's ``samples_{task}_{date}.jsonl`` of tasks that generate: text alone.

Read in its evaluator and ``EvaluationTracker``. A document has a line for each filter of its answers, with the same
responses; the first is read. ``target`` is the reference answer, of GSM8K what follows ``####``. A metric is the score
where the document has one response. Tasks of log-likelihoods sample nothing. With
``think_end_token`` the responses lack all that stands before it; ``results_{date}.json`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.sampling import sampling_of
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.texts import parse_json, read_json
from opd_probe.types import Rollout

KEPT = ("doc_id", "filter", "doc_hash", "prompt_hash")


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    requests, responses = _requests(place, row["arguments"]), fields.sequence(place, row, "resps")
    if len(requests) != len(responses):
        raise InputError(f"{place}: resps has {len(responses)} entries for {len(requests)} arguments")
    answers = _answers(row.get("target"))
    several = len(responses) > 1 or any(len(texts) > 1 for texts in responses if isinstance(texts, list))
    for index, (request, texts) in enumerate(zip(requests, responses, strict=True)):
        if len(request) < 2 or not isinstance(request[1], Mapping):
            yield Skipped("of a task that samples nothing")
            return
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: resps holds {type(texts).__name__}; expected lists of texts")
        prompt, messages = _prompt(place, request[0])
        extra = {name: row[name] for name in KEPT if name in row} | fields.several(answers)
        if isinstance(row.get("doc"), Mapping):
            extra["doc"] = fields.scalars(row["doc"])
        sampling = sampling_of(request[1])
        for number, text in enumerate(texts):
            yield Rollout(
                id=f"{where.name}/{index}/{number}" if several else where.name,
                prompt_ids=(),
                response_ids=(),
                step=where.step,
                prompt=prompt,
                response=text,
                answer=answers[0] if answers else None,
                score=None if several else _score(place, row),
                token_source="retokenized",
                sampling=sampling,
                extra=extra if messages is None else {**extra, "messages": messages},
            )


def _requests(place: str, arguments: Any) -> list[list[Any]]:
    """The arguments of each request; the file names them gen_args_0 … and arg_0 …"""
    if not isinstance(arguments, Mapping) or not all(isinstance(value, Mapping) for value in arguments.values()):
        raise InputError(f"{place}: arguments is {type(arguments).__name__}; expected gen_args_0 with arg_0, arg_1")
    return [list(value.values()) for value in arguments.values()]


def _prompt(place: str, value: Any) -> tuple[str | None, list[Any] | None]:
    """The prompt as text, or as the chat messages that models behind an API get (JSON in a list of one)."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], str):
        try:
            messages = parse_json(value[0])
        except ValueError:
            messages = None
        if isinstance(messages, list):
            return None, messages
    raise InputError(f"{place}: arg_0 is {type(value).__name__}; expected the prompt as text or as chat messages")


def _answers(target: Any) -> list[str]:
    return [answer.rpartition("####")[2].strip() for answer in fields.reference_answers(target)]


def _score(place: str, row: Mapping[str, Any]) -> float | None:
    """The first metric that is a number."""
    names = row.get("metrics")
    known = [str(name) for name in names] if isinstance(names, list) else []
    found = next((name for name in known if isinstance(row.get(name), (int, float))), None)
    return None if found is None else fields.number(place, row, found)


def _without_thinking(path: Path) -> str | None:
    """Whether the evaluation's results, of the same time where there are several, say that thinking was cut off."""
    time = path.stem.rpartition("_")[2]
    found = sorted(path.parent.glob("results_*.json"))
    for file in [file for file in found if file.stem == f"results_{time}"] or found:
        try:
            config = read_json(file)["config"]
            given = config.get("model_args") or {}
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
            continue
        if isinstance(given, str):
            given = dict(pair.partition("=")[::2] for pair in given.split(","))
        token = given.get("think_end_token") if isinstance(given, Mapping) else None
        if token not in (None, "", "None"):
            return "whose thinking lm-eval cut off (think_end_token), so that the context of the rest is not there"
    return None


SOURCE = Source(
    "lm-eval",
    "doc_id, arguments, resps",
    ("doc_id", "arguments", "resps"),
    _rollouts,
    step_of=step_of_folder,
    same=lambda row: str(row["doc_id"]),
    left_out=_without_thinking,
)
