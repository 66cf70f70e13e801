"""The traces of each run and teacher as one course, and what is known of them beside their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd_probe.curves.intervals import Ints
from opd_probe.curves.sampling import sampling_label
from opd_probe.curves.trend import Course, course
from opd_probe.curves.whole import diagnose
from opd_probe.results.verdict import Facts, Judgement, judge
from opd_probe.rollouts.repeats import TAIL, goes_in_circles
from opd_probe.runs.stored import Measured
from opd_probe.trace import Trace

METRICS = (
    "overlap_ratio", "reverse_kl", "overlap_advantage", "entropy_gap", "student_overlap_mass", "teacher_overlap_mass",
    "student_entropy", "teacher_entropy", "sampled_reward",
)  # fmt: skip
"""What verdicts are made of, beside the quantities of rollouts."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One run and teacher: its traces by step, their course and the verdict."""

    run: str
    teacher: str
    traces: Sequence[Measured]
    course: Course
    facts: Facts
    judgement: Judgement


def judged(measured: Sequence[Measured]) -> list[Judged]:
    """A verdict for each run and teacher of traces in their order.

    Raises:
        InputError, TraceError: a k that cannot be used.
    """
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.run, one.teacher), []).append(one)
    found = []
    for (run, teacher), traces in groups.items():
        settings = traces[0].settings
        along = course(
            [one.trace for one in traces], [one.step for one in traces], settings.k, METRICS, settings.average
        )
        facts = facts_of(traces)
        found.append(Judged(run, teacher, traces, along, facts, judge(along, facts)))
    return found


def facts_of(traces: Sequence[Measured]) -> Facts:
    """What is known of the traces of one run and teacher beside their curves."""
    last = traces[-1].trace
    outside = [_mean(one.trace, f"{side}_mass_outside") for one in traces for side in ("student", "teacher")]
    return Facts(
        states=tuple(one.states for one in traces),
        token_sources=tuple(one.token_source for one in traces),
        sampling=tuple(sampling_label(one.trace) for one in traces),
        top_share=float(diagnose(last, resamples=0)["top_1pct_signal_share"]),
        repetition=repetition(last),
        outside=float(np.nanmax(outside, initial=0.0)),
    )


def repetition(trace: Trace) -> float:
    """The share of a trace's responses of at least 64 states that end in repetition, see
    :func:`opd_probe.rollouts.repeats.goes_in_circles`; NaN where none is that long, or the tokens are not known."""
    offsets = trace.rollout_offsets
    long = np.flatnonzero(np.diff(offsets) >= TAIL)
    if not len(long):
        return float("nan")
    tails = _tails(trace, offsets[long + 1])
    known = tails[(tails >= 0).all(1)]
    return float(np.mean([goes_in_circles(tail) for tail in known.tolist()])) if len(known) else float("nan")


def _tails(trace: Trace, ends: Ints) -> Ints:
    """[n, 64], the tokens of the states before each end, from one pass."""
    wanted = np.zeros(trace.n_states, dtype=bool)
    for end in ends:
        wanted[end - TAIL : end] = True
    kept, start = [], 0
    for block in trace.blocks(["token_id"]):
        tokens = block["token_id"]
        kept.append(tokens[wanted[start : start + len(tokens)]])
        start += len(tokens)
    return np.concatenate(kept).astype(np.int64).reshape(len(ends), TAIL)


def _mean(trace: Trace, name: str) -> float:
    total = sum(float(np.nansum(block[name].astype(np.float64))) for block in trace.blocks([name]))
    return total / trace.n_states if trace.n_states else float("nan")
