"""TRL's ``completions/completions_00001.parquet`` of ``log_completions``: text alone.

Read in the ``log`` methods of the distillation and GRPO trainers. GRPO writes prompts and completions as they came,
chat messages where the data set has them, a column of each reward function, what rewards log beside it, and
``advantage``; the distillation trainer decodes both without special tokens. An evaluation at step N writes its samples,
which are of checkpoint N, over those of the batch of step N, and they are logged again until the next batch is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.encoding import STRIPPED
from opd_probe.rollouts.prompts import check_messages
from opd_probe.rollouts.sources.source import NEXT_STEP, Skipped, Source, Where, evaluated_beside, step_of_file
from opd_probe.texts import real_path
from opd_probe.types import Rollout

USED = ("step", "prompt", "completion")
ANSWERS = ("answer", "solution", "ground_truth")
NO_REWARDS = ("advantage", "advantages", "entropy", "num_turns")


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    stripped = "advantage" not in row and isinstance(row["prompt"], str)
    yield logged(where, row, STRIPPED if stripped else {})


def logged(where: Where, row: Mapping[str, Any], marks: Mapping[str, Any]) -> Rollout | Skipped:
    """A rollout of a trainer's table of completions, one row of it.

    The one column of numbers that is a reward is the score; of several none is, and all stay in ``extra``.
    """
    place, completion = where.place, row["completion"]
    if not isinstance(completion, str):
        check_messages(f"{place}: completion", completion)
        if len(completion) > 1:
            return Skipped("of several turns as text, of which nothing says what the student sampled")
        completion = _content(place, completion[0])
    prompt = row["prompt"]
    extra = {**fields.others(row, USED), **marks}
    if not isinstance(prompt, str):
        check_messages(f"{place}: prompt", prompt)
        extra["messages"] = list(prompt)
    answers = next((found for name in ANSWERS if (found := fields.reference_answers(row.get(name)))), ())
    extra |= fields.several(answers)
    rewards = [name for name, value in row.items() if name not in (*USED, *ANSWERS, *NO_REWARDS) and _is_number(value)]
    step = fields.whole_number(place, row, "step")
    return Rollout(
        id=where.name,
        prompt_ids=(),
        response_ids=(),
        step=where.step if step is None else step,
        prompt=prompt if isinstance(prompt, str) else None,
        response=completion,
        answer=answers[0] if answers else None,
        score=fields.number(place, row, rewards[0]) if len(rewards) == 1 else None,
        token_source="retokenized",
        extra=extra,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _content(place: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise InputError(f"{place}: completion has no text as content; expected an assistant message")
    return content


SOURCE = Source(
    "trl",
    "step, prompt, completion",
    ("prompt", "completion"),
    _rollouts,
    step_of=step_of_file,
    logs_again=True,
    evaluated=lambda path: evaluated_beside(real_path(path).parent.parent),
    steps_are=NEXT_STEP,
)
