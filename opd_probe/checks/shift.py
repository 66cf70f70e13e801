"""Are a teacher's log-probabilities those of the same tokens as the student's?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats, teacher_scores
from opd_probe.checks.registry import Skip, Verdict, grade, register
from opd_probe.checks.stored import lengths_off, stored_teacher

SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
SHORTEST = 10
"""Pairs of tokens below which a correlation is not judged."""

CERTAIN = 3.0
"""Standard errors by which another shift must beat δ = 0."""


@dataclass(frozen=True, slots=True)
class Correlations:
    """Pearson correlations of log p_t with log q_{t+δ} in one rollout, for δ of :data:`SHIFTS`, and pairs of each."""

    r: Floats
    n: Floats

    @property
    def judged(self) -> bool:
        """Whether there are enough tokens, and log-probabilities that vary."""
        return bool((self.n >= SHORTEST).all() and np.isfinite(self.r).all())

    @property
    def best(self) -> int:
        """δ of the largest correlation."""
        return SHIFTS[int(np.argmax(self.r))]

    @property
    def certain(self) -> bool:
        """Whether the best beats δ = 0 by more than chance: Fisher's z = atanh r has the variance 1 / (n − 3)."""
        z = np.arctanh(np.clip(self.r, -0.999999, 0.999999))
        error = np.sqrt(2.0 / (self.n.min() - 3.0))
        return bool(z.max() - z[SHIFTS.index(0)] > CERTAIN * error)


def correlations(student: Floats, teacher: Floats) -> Correlations:
    """Of two series of one value per response token; NaN where unknown."""
    r, n = [], []
    for shift in SHIFTS:
        left = student[max(0, -shift) : len(student) - max(0, shift)]
        right = teacher[max(0, shift) : len(teacher) - max(0, -shift)]
        known = np.isfinite(left) & np.isfinite(right)
        left, right = left[known], right[known]
        n.append(len(left))
        varies = len(left) > 1 and np.ptp(left) > 0 and np.ptp(right) > 0
        r.append(np.corrcoef(left, right)[0, 1] if varies else np.nan)
    return Correlations(np.array(r), np.array(n, dtype=np.float64))


_MEASURES = "per rollout, the δ in −3 … 3 with the largest correlation of log p_t with log q_{t+δ}"
_RULE = (
    "fail: a rollout in which another δ beats 0 by more than three standard errors (of Fisher's z); warn: δ = 0 is not "
    "best in most rollouts. Rollouts with fewer than 10 pairs, or without variation, are counted and not judged"
)
_KNOWN = "AReaL#1728, ms-swift PR#8436, RLCSD#6"


@register(
    "shift_stored",
    measures=f"{_MEASURES}, q as it came along in the rollouts",
    rule=f"{_RULE}. fail too: another number of values than of response tokens",
    advice="a value belongs to the token that it scores: logits at t predict token t + 1; mend the trainer's slice and "
    "train again, its rewards were those of neighbours",
    known_from=_KNOWN,
)
def shift_stored(evidence: Evidence) -> Verdict:
    if off := lengths_off(evidence):
        name, values, tokens = off[0]
        figure = f"rollout {name!r} has {values} teacher log-probs for {tokens} response tokens ({len(off)} such)"
        return Verdict("fail", figure, {"n_wrong_length": len(off)})
    return _verdict(_student(evidence), stored_teacher(evidence), evidence)


@register(
    "shift_replayed",
    measures=f"{_MEASURES}, q as it was replayed",
    rule=_RULE,
    advice="a defect in how the pair is read, such as a token that one model adds before every prompt: compare the "
    "prompts, and report it",
    known_from=_KNOWN,
)
def shift_replayed(evidence: Evidence) -> Verdict:
    teacher = {index: _spread(evidence, index, values) for index, values in teacher_scores(evidence.replayed()).items()}
    return _verdict(_student(evidence), teacher, evidence)


def _student(evidence: Evidence) -> dict[int, Floats]:
    return {i: _spread(evidence, i, columns["student_logprob"]) for i, columns in evidence.replayed().items()}


def _spread(evidence: Evidence, index: int, values: Floats) -> Floats:
    """One value per response token from one per state."""
    spread = np.full(len(evidence.rollouts[index].response_ids), np.nan)
    spread[evidence.states[index]["position"]] = values
    return spread


def _verdict(student: Mapping[int, Floats], teacher: Mapping[int, Floats], evidence: Evidence) -> Verdict:
    found = {index: correlations(student[index], teacher[index]) for index in student if index in teacher}
    judged = {index: one for index, one in found.items() if one.judged}
    short = len(evidence.rollouts) - len(judged)
    if not judged:
        raise Skip(f"none of {len(evidence.rollouts)} rollouts is long enough to be judged")
    best = [one.best for one in judged.values()]
    shifted = [index for index, one in judged.items() if one.best != 0 and one.certain]
    at_zero = best.count(0)
    middle = float(np.median([one.r[SHIFTS.index(0)] for one in judged.values()]))
    values = {
        "n_judged": len(judged), "n_not_judged": short, "n_best_at_0": at_zero, "n_shifted": len(shifted),
        "best": {str(shift): best.count(shift) for shift in SHIFTS}, "median_correlation_at_0": middle,
    }  # fmt: skip
    figure = f"δ = 0 is best in {at_zero} of {len(judged)} rollouts (median correlation there {middle:.2f})"
    if shifted:
        deltas = [judged[index].best for index in shifted]
        common = max(set(deltas), key=deltas.count)
        where = evidence.rollouts[next(i for i in shifted if judged[i].best == common)].id
        figure += f"; {len(shifted)} are shifted, most by δ = {common:+d}, as {where!r}"
    if short:
        figure += f"; {short} not judged"
    return Verdict(grade(fail=bool(shifted), warn=2 * at_zero < len(judged)), figure, values)
