"""Pairs of a student and a teacher with the student's rollouts, what is right of them, and how far off others are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

import opd_probe
from benchmarks.precision import is_count
from opd_probe.metrics import METRICS
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import Trace
from opd_probe.types import Rollout
from tests.real.truth import ROWS, Floats, Llama, Values, logits_of, measure, number_of

K, DEPTH = 16, 64
ROLLOUTS, NEW_TOKENS = 3, 24

QUESTIONS = (
    "What is 17 + 25? Answer with a number.",
    "Name the capital of Italy.",
    "Write one sentence about the sea.",
    "How many legs do three spiders have?",
    "Explain to a child why the sky is blue.",
    "List four fruits, separated by commas.",
    "Translate 'good morning' into French.",
    "Write a Python function that returns the larger of two numbers.",
    "Tom has 12 apples and gives away 5. How many are left?",
    "Give me a title for a story about a lost dog.",
    "Count from one to twenty in words.",
    "Repeat the word 'green' ten times.",
)


@dataclass
class Pair:
    """A student, a teacher, and rollouts that the student sampled."""

    name: str
    student: Path
    teacher: Path
    rollouts: list[Rollout]
    _hidden: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _by_hand: dict[torch.dtype, Values] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The sampled tokens of all states."""
        return np.concatenate([np.asarray(rollout.response_ids, dtype=np.int64) for rollout in self.rollouts])

    @property
    def correct(self) -> Floats:
        """The verdict on each state's rollout: 1, 0, or NaN without one."""
        scores = [np.nan if r.score is None else r.score for r in self.rollouts]
        return np.repeat(np.asarray(scores, dtype=np.float64), [len(r.response_ids) for r in self.rollouts])

    @cached_property
    def truth(self) -> Values:
        """Every metric by the models' forward pass in float64."""
        return self._exact(torch.float32)

    @cached_property
    def rounded_truth(self) -> Values:
        """The same of the models with weights rounded to bf16: what the rounding of the weights alone does."""
        return self._exact(torch.bfloat16)

    def _exact(self, weights: torch.dtype) -> Values:
        sides = []
        for place in (self.student, self.teacher):
            model = Llama(place, weights)
            sides.append(logits_of(model.hidden(self.rollouts), model.output))
        return measure(sides[0], sides[1], self.tokens, self.correct, K, DEPTH)

    @torch.inference_mode()
    def hidden(self, side: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Hidden states [N, d] and output layer [V, d] by transformers' own pass, each rollout by itself."""
        if (side, dtype) not in self._hidden:
            model = AutoModelForCausalLM.from_pretrained(getattr(self, side), dtype=dtype)
            parts = []
            for rollout in self.rollouts:
                ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids][:-1]])
                parts.append(model.model(input_ids=ids).last_hidden_state[0, len(rollout.prompt_ids) - 1 :])
            self._hidden[side, dtype] = torch.cat(parts)
            self._hidden[side, dtype, "layer"] = model.get_output_embeddings().weight.detach()
        return self._hidden[side, dtype], self._hidden[side, dtype, "layer"]

    def by_hand(self, dtype: torch.dtype) -> Values:
        """What a script gets that takes the logits of transformers' own pass, and does the rest in float64."""
        if dtype not in self._by_hand:
            sides = [_logits(*self.hidden(side, dtype)) for side in ("student", "teacher")]
            self._by_hand[dtype] = measure(sides[0], sides[1], self.tokens, self.correct, K, DEPTH)
        return self._by_hand[dtype]


def _logits(hidden: Tensor, layer: Tensor) -> Iterator[Tensor]:
    for rows in hidden.split(ROWS):
        yield (rows @ layer.t()).double()


def sample(student: Path, teacher: Path, name: str, home: Path, temperature: float = 1.0) -> Pair:
    """A pair with rollouts that the command line samples from the student, through its chat template."""
    prompts, out = home / "prompts.jsonl", home / f"{student.name}-{temperature}.jsonl"
    rows = [{"id": f"q{n}", "messages": [{"role": "user", "content": text}]} for n, text in enumerate(QUESTIONS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "opd_probe.cli.main", "rollout", "--ckpts", student, "--prompts", prompts]
    command += ["--num-rollouts", ROLLOUTS, "--max-new-tokens", NEW_TOKENS, "--sample-temperature", temperature]
    done = subprocess.run([*map(str, command), "--out", str(out)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Every second answer of a prompt counts as right, so that what needs both verdicts has them.
    rollouts = [replace(r, score=float(n % ROLLOUTS % 2)) for n, r in enumerate(read_rollouts(out))]
    return Pair(name, student, teacher, rollouts)


def values_of(trace: Trace) -> Values:
    """Every metric of a trace by state, and what two computations are compared by beside them."""
    table = opd_probe.state_metrics(trace, K)
    found = {name: table[name].to_numpy(dtype=np.float64) for name in table.columns if table[name].dtype.kind == "f"}
    for side in ("student", "teacher"):
        ids = trace.column(f"{side}_top_ids")[:, :K]
        found[f"{side}_set"] = np.array([number_of(row) for row in ids.tolist()])
    return found


@dataclass(frozen=True)
class Error:
    """How far one metric is off over all states.

    Attributes:
        mean: the right mean, over the states where both know a value.
        off: the mean that was found − the right one.
        typical: the median error of a state, where top sets are right.
        worst: the largest such error. Of a count: the share of all states where it differs.
        relative: the largest relative error where the right value is at least :data:`SMALLEST`.
        unlike: states where one has a value and the other none.
    """

    mean: float
    off: float
    typical: float
    worst: float
    relative: float
    unlike: int


SMALLEST = 1e-7
"""Divergences, in nats, from which on a relative error is asked for."""


def same_sets(found: Values, right: Values) -> NDArray[np.bool_]:
    """Where both top-k sets are those that they should be, [n]."""
    return (found["student_set"] == right["student_set"]) & (found["teacher_set"] == right["teacher_set"])


def errors(found: Values, right: Values) -> dict[str, Error]:
    """The error of every metric that was found at some state; what rests on top sets where these are right."""
    same = same_sets(found, right)
    result = {}
    for name in METRICS:
        got, true = found[name], right[name]
        known = ~np.isnan(got) & ~np.isnan(true)
        if not known.any():
            continue
        gap = np.abs(got - true)
        usual = known & same
        large = usual & (np.abs(true) >= SMALLEST)
        result[name] = Error(
            mean=float(true[known].mean()),
            off=float((got[known] - true[known]).mean()),
            typical=float(np.median(gap[usual])),
            worst=float((gap[known] > 0).mean()) if is_count(name) else float(gap[usual].max()),
            relative=float((gap[large] / np.abs(true[large])).max()) if large.any() else 0.0,
            unlike=int((np.isnan(got) != np.isnan(true)).sum()),
        )
    return result


def other_sets(found: Values, right: Values) -> float:
    """The share of states where one of the top-k sets is another."""
    return 1.0 - float(same_sets(found, right).mean())
