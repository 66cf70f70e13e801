"""Quantities that several claims compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Final

from opd_probe.lab.reading import Tables, Value
from opd_probe.lab.task import STEP_LENGTH

SUCCESS_FAILURE, COMPATIBLE, INCOMPATIBLE = "success_failure", "compatible teacher", "incompatible teacher"
SECOND: Final = "second pair: "
NOT_CUT: Final = "no cut"
SUPPORTS: Final = ("student top-k", "overlap only", "symmetric difference")
COLD, PLAIN = "cold start, then OPD", "plain OPD"


def shrinkage(t: Tables, run: str, metric: str) -> Value:
    """|metric| before the first step over that at the end."""
    return abs(t.start(SUCCESS_FAILURE, run, metric)) / abs(t.end(SUCCESS_FAILURE, run, metric))


def between(t: Tables, experiment: str, first: str, second: str, metric: str, when: str = "end") -> Value:
    """A metric of one run minus that of another, at the start or at the end."""
    at = t.end if when == "end" else t.start
    return at(experiment, first, metric) - at(experiment, second, metric)


def lowest(values: Sequence[Value]) -> Value:
    """The smallest of several values."""
    return min(values, key=lambda value: value.value)


def highest(values: Sequence[Value]) -> Value:
    """The largest of several values."""
    return max(values, key=lambda value: value.value)


def recovered(t: Tables, family: str) -> Value:
    """NaN where a teacher is not ahead of the student: then there is no gap to recover."""
    experiment, values = "new_knowledge", []
    for kind, teacher in (("further training", "big-taught"), ("same pipeline", "big-student")):
        run, name = f"family {family}: {kind}", teacher if family == "A" else f"b-{teacher}"
        gap = t.model(experiment, name, "teacher") - t.start(experiment, run, "accuracy")
        recovery = t.model(experiment, run, "distilled", "gap_recovery")
        values.append(recovery if gap.value > 0 else Value(math.nan))
    return values[0] - values[1]


def share_gained(t: Tables, failing: str, good: str) -> Value:
    """Accuracy gained in the failing run over that in the successful one; NaN where that one gained nothing."""
    gained = t.gain(SUCCESS_FAILURE, good)
    return t.gain(SUCCESS_FAILURE, failing) / gained if gained.value > 0 else Value(math.nan)


def taught(t: Tables, family: str) -> Value:
    """Accuracy gained from the teacher that was trained further minus that from the one of the same pipeline."""
    gains = (t.gain("new_knowledge", f"family {family}: {kind}") for kind in ("further training", "same pipeline"))
    taught, same = gains
    return taught - same


def paths(t: Tables) -> Value:
    """The largest distance between the two accuracies of reverse distillation at any step."""
    own, sibling = (
        t.curve("reverse_distillation", run, "accuracy") for run in ("own earlier checkpoint", "bigger sibling")
    )
    return highest([abs(own[step] - sibling[step]) for step in own])


def left(losses: Sequence[float]) -> float:
    """The share of the first three steps' mean that the last three still have."""
    return fmean(losses[-3:]) / fmean(losses[:3])


def at_the_start(t: Tables, quantity: str) -> Value:
    """A quantity of the training log over the first three steps: failing run over successful run."""
    failing, good = (fmean(t.log(SUCCESS_FAILURE, run, quantity)[:3]) for run in (INCOMPATIBLE, COMPATIBLE))
    return Value(failing / good)


def unsteadiness(values: Sequence[float]) -> float:
    """Standard deviation over mean in the second half."""
    half = values[len(values) // 2 :]
    return stdev(half) / fmean(half)


def accuracies(t: Tables, runs: Sequence[str]) -> list[Value]:
    """Accuracy at the end of several runs of the experiment on k."""
    return [t.end("sampled_vs_topk", run, "accuracy") for run in runs]


def entropy_of_step(t: Tables, step: int, number: int) -> Value:
    """The student's entropy within one step of the working, at one training step."""
    first = STEP_LENGTH * number
    return t.along("response_length", NOT_CUT, "student_entropy", step, first, first + STEP_LENGTH - 1)
