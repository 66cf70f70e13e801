"""ms-swift's ``completions.jsonl``: a table per line, a list for each column; under Ray a row per line. Text alone.

Read in the ``log`` methods of its GRPO and GKD trainers. ``step`` holds text; prompts are decoded with their special
tokens; columns of rewards bear the names of the reward functions. The last table is written twice. Rows of an
evaluation stand among those of training, unmarked; ``logging.jsonl`` beside them says at which steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.rows import absent
from opd_probe.rollouts.sources.source import NEXT_STEP, Skipped, Source, Where, evaluated_beside
from opd_probe.rollouts.sources.trl import logged
from opd_probe.texts import real_path
from opd_probe.types import Rollout


def _recognises(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("step"), list) or "gen_step" in row


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    if "gen_step" in row:
        yield logged(where, _with_step(where.place, {**fields.others(row, ("gen_step",)), "step": row["gen_step"]}), {})
        return
    if "step" not in row:
        raise InputError(f"{where.place}: no step; expected a list as long as prompt")
    columns = {name: fields.sequence(where.place, row, name) for name in ("step", "prompt", "completion")}
    n = len(columns["prompt"])
    for name, values in columns.items():
        if len(values) != n:
            raise InputError(f"{where.place}: {name} has {len(values)} entries for {n} prompts")
    columns |= {name: values for name, values in row.items() if isinstance(values, list) and len(values) == n}
    for index in range(n):
        entry = {name: values[index] for name, values in columns.items() if not absent(values[index])}
        place = f"{where.place}, entry {index}"
        for name in ("prompt", "completion"):
            if name not in entry:
                raise InputError(f"{place}: no {name}; expected text")
        yield logged(replace(where, place=place, name=f"{where.name}/{index}"), _with_step(place, entry), {})


def _with_step(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    step = row.get("step")
    if isinstance(step, str):
        if not step.isdecimal():
            raise InputError(f"{place}: step is {step!r}; expected a whole number")
        return {**row, "step": int(step)}
    return dict(row)


def _table(row: Mapping[str, Any]) -> Any:
    """A table's content, since the last one is logged twice; rows by themselves may well be equal."""
    return repr(row) if isinstance(row.get("step"), list) else object()


SOURCE = Source(
    "ms-swift",
    "lists step, prompt, completion; or gen_step, prompt, completion",
    ("prompt", "completion"),
    _rollouts,
    _recognises,
    same=_table,
    logs_again=True,
    evaluated=lambda path: evaluated_beside(real_path(path).parent),
    steps_are=NEXT_STEP,
)
