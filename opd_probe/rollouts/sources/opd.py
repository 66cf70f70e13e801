"""The samples of thunlp/OPD's ``gen_vllm.py``: one line per response, text alone.

``prompt`` is the content of one user message; the script puts it through the chat template before it samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.source import Source, Where, step_of_folder
from opd_probe.types import Rollout


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout]:
    place = where.place
    prompt = fields.needed_text(place, row, "prompt")
    answers = fields.reference_answers(row.get("answer"))
    yield Rollout(
        id=where.name,
        prompt_ids=(),
        response_ids=(),
        step=where.step,
        response=fields.needed_text(place, row, "response"),
        answer=answers[0] if answers else None,
        token_source="retokenized",
        extra={
            **fields.others(row, ("prompt", "response", "answer")),
            **fields.several(answers),
            "messages": [{"role": "user", "content": prompt}],
        },
    )


SOURCE = Source(
    "opd-gen-vllm",
    "example_id, prompt, answer, seed, response",
    ("example_id", "prompt", "seed", "response"),
    _rollouts,
    step_of=step_of_folder,
)
