"""verl's dumps, ``rollout_data_dir`` and ``validation_data_dir``, also of thunlp/OPD: ``<step>.jsonl``, text alone.

Read in verl's ``RayPPOTrainer._dump_generations``: ``input``, ``output``, ``gts``, ``score``, ``step``, and one field
for each thing that the reward function tells. Both texts are decoded without special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.rollouts import fields
from opd_probe.rollouts.encoding import STRIPPED
from opd_probe.rollouts.sources.source import NEXT_STEP, Source, Where, step_of_file
from opd_probe.types import Rollout


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout]:
    place = where.place
    answers = fields.reference_answers(row.get("gts"))
    step = fields.whole_number(place, row, "step")
    used = ("input", "output", "score", "step", *(["gts"] if answers else []))
    yield Rollout(
        id=where.name,
        prompt_ids=(),
        response_ids=(),
        step=where.step if step is None else step,
        prompt=fields.needed_text(place, row, "input"),
        response=fields.needed_text(place, row, "output"),
        answer=answers[0] if answers else None,
        score=fields.number(place, row, "score"),
        token_source="retokenized",
        extra={**fields.others(row, used), **fields.several(answers), **STRIPPED},
    )


SOURCE = Source(
    "verl",
    "input, output",
    ("input", "output"),
    _rollouts,
    lambda row: not isinstance(row["output"], Mapping),  # which evaluations have under these names
    step_of=step_of_file,
    steps_are=f"in training, {NEXT_STEP}; in validation they are the checkpoint's of that step",
)
