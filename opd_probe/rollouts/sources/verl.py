"""verl's dumps, ``rollout_data_dir`` and ``validation_data_dir``, also of thunlp/OPD: ``<step>.jsonl``, text alone.

Read in verl's ``RayPPOTrainer._dump_generations``: ``input``, ``output``, ``gts``, ``score``, ``step``, and one field
for each thing that the reward function tells. Both texts are decoded without special tokens.

Since 0.9 ``PPOTrainer._log_rollout_data`` writes ``uid``, which is ``{prompt}_{session}_{output}``: an agent's session
may have several outputs, each with a context of its own, and the session's final score stands on every one. It is that
of the last, and so is the answer; all are of one prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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


_UID = re.compile(r"(.+)_(\d+)_(\d+)")


def _sessions(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those of sessions with several outputs: one prompt, and the score and the answer with the last alone."""
    uids = [_UID.fullmatch(str(rollout.extra.get("uid", ""))) for rollout in rollouts]
    last: dict[tuple[str, str], int] = {}
    first: dict[str, tuple[int, str]] = {}
    for rollout, uid in zip(rollouts, uids, strict=True):
        if uid:
            session, output = (uid.group(1), uid.group(2)), int(uid.group(3))
            last[session] = max(output, last.get(session, 0))
            begins = (output, rollout.prompt or "")
            first[uid.group(1)] = min(begins, first.get(uid.group(1), begins))
    if not any(last.values()):
        return list(rollouts)
    done = []
    for rollout, uid in zip(rollouts, uids, strict=True):
        if uid is None:
            done.append(rollout)
            continue
        name = "prompt-" + hashlib.sha256(first[uid.group(1)][1].encode()).hexdigest()[:16]
        if int(uid.group(3)) < last[uid.group(1), uid.group(2)]:
            known = {"session_score": rollout.score, "session_answer": rollout.answer}
            kept = {key: value for key, value in rollout.extra.items() if key != fields.ANSWERS}
            rollout = replace(rollout, score=None, answer=None, extra={**kept, **known})
        done.append(replace(rollout, prompt_id=name))
    return done


SOURCE = Source(
    "verl",
    "input, output",
    ("input", "output"),
    _rollouts,
    lambda row: not isinstance(row["output"], Mapping),  # which evaluations have under these names
    step_of=step_of_file,
    together=_sessions,
    steps_are=f"in training, {NEXT_STEP}; in validation they are the checkpoint's of that step",
)
