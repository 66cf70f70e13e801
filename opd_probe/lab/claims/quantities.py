"""Quantities that several claims compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Final

from opd_probe.lab.reading import Tables, Value
from opd_probe.lab.task import STEP_LENGTH

SF, COMPATIBLE, INCOMPATIBLE = "success_failure", "compatible teacher", "incompatible teacher"
SECOND: Final = "second pair: "
NOT_CUT: Final = "no cut"
SUPPORTS: Final = ("student top-k", "overlap only", "symmetric difference")
COLD, PLAIN = "cold start, then OPD", "plain OPD"


def shrinkage(t: Tables, run: str, metric: str) -> Value:
    return abs(t.start(SF, run, metric)) / abs(t.end(SF, run, metric))


def between(t: Tables, experiment: str, first: str, second: str, metric: str, when: str = "end") -> Value:
    at = t.end if when == "end" else t.start
    return at(experiment, first, metric) - at(experiment, second, metric)


def lowest(values: Sequence[Value]) -> Value:
    return min(values, key=lambda value: value.value)


def highest(values: Sequence[Value]) -> Value:
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
    gained = t.gain(SF, good)
    return t.gain(SF, failing) / gained if gained.value > 0 else Value(math.nan)


def taught(t: Tables, family: str) -> Value:
    gains = (t.gain("new_knowledge", f"family {family}: {kind}") for kind in ("further training", "same pipeline"))
    taught, same = gains
    return taught - same


def paths(t: Tables) -> Value:
    own, sibling = (
        t.curve("reverse_distillation", run, "accuracy") for run in ("own earlier checkpoint", "bigger sibling")
    )
    return highest([abs(own[step] - sibling[step]) for step in own])


def left(losses: Sequence[float]) -> float:
    """The share of the first three steps' mean that the last three still have."""
    return fmean(losses[-3:]) / fmean(losses[:3])


def at_the_start(t: Tables, quantity: str) -> Value:
    failing, good = (fmean(t.log(SF, run, quantity)[:3]) for run in (INCOMPATIBLE, COMPATIBLE))
    return Value(failing / good)


def unsteadiness(values: Sequence[float]) -> float:
    half = values[len(values) // 2 :]
    return stdev(half) / fmean(half)


def accuracies(t: Tables, runs: Sequence[str]) -> list[Value]:
    return [t.end("sampled_vs_topk", run, "accuracy") for run in runs]


def entropy_of_step(t: Tables, step: int, number: int) -> Value:
    first = STEP_LENGTH * number
    return t.along("response_length", NOT_CUT, "student_entropy", step, first, first + STEP_LENGTH - 1)
