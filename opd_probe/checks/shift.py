"""Are a teacher's log-probabilities those of the same tokens as the student's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from opd_probe.checks.evidence import Evidence, Floats, Skip, teacher_scores
from opd_probe.checks.registry import Verdict, grade, register
from opd_probe.checks.stored import lengths_off, stored_teacher

SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
SHORTEST = 10
"""Pairs of tokens below which a correlation is not judged."""

CERTAIN = 3.0
"""Standard errors by which another shift must beat δ = 0."""

LIKELY = 2.0
"""Standard errors by which it must do so in ranks, too."""

MEANINGFUL = 0.3
"""The least correlation of a shift that is taken for one: of series that have nothing in common some δ is best, too."""


NOTABLE = 0.1
"""The least by which its correlation must exceed that of δ = 0: of near-copies a hair decides."""

_FEWEST = 4.0
"""Independent pairs of which there is a standard error at all."""


@dataclass(frozen=True, slots=True)
class Correlations:
    """Pearson correlations of log p_t with log q_{t+δ}.

    Attributes:
        r, n: for each δ of :data:`SHIFTS` the correlation, and its pairs.
        ranks: as ``r``, of the ranks of the values: a few tokens of tiny probability make Pearson's r what it is.
        free: how many independent pairs they are worth, see :func:`independent`.
    """

    r: Floats
    n: Floats
    ranks: Floats
    free: float

    @property
    def judged(self) -> bool:
        """Whether there are enough tokens, and log-probabilities that vary."""
        return bool((self.n >= SHORTEST).all() and np.isfinite(self.r).all())

    @property
    def best(self) -> int:
        """δ of the largest correlation."""
        return SHIFTS[int(np.argmax(self.r))]

    @property
    def shifted(self) -> bool:
        """Whether the best is not δ = 0, by more than chance."""
        error, here, there = np.sqrt(2.0 / (self.free - 3.0)), SHIFTS.index(0), SHIFTS.index(self.best)
        values, ranks = fisher(self.r), fisher(self.ranks)
        certain = values[there] - values[here] > CERTAIN * error and ranks[there] - ranks[here] > LIKELY * error
        return bool(certain and self.r[there] - self.r[here] > NOTABLE and self.r[there] > MEANINGFUL)


def fisher(r: Floats) -> Floats:
    """z = atanh r, whose variance is 1 / (n − 3) whatever r is."""
    return np.asarray(np.arctanh(np.clip(r, -0.999999, 0.999999)))


def pooled(found: Sequence[Correlations]) -> Correlations:
    """Of several rollouts together: the mean of their z, each weighted by its independent pairs less 3."""
    weights = np.array([one.free - 3.0 for one in found])
    n = np.stack([one.n for one in found]).sum(0)
    r, ranks = (
        np.tanh(weights @ np.stack([fisher(each) for each in parts]) / weights.sum())
        for parts in zip(*((one.r, one.ranks) for one in found), strict=True)
    )
    return Correlations(r, n, ranks, float(weights.sum()) + 3.0)


def independent(left: Floats, right: Floats) -> float:
    """n / (1 + 2 Σ_k ρ_left(k) ρ_right(k)) over all lags k > 0 (Bartlett), between 4 and n.

    Pairs of two series that go on as they began are no news: those of a loop are worth about its period, so that δ
    may be best by chance however long it is.
    """
    n = len(left)
    if n < 2 or not (np.ptp(left) > 0 and np.ptp(right) > 0):
        return _FEWEST
    together = float((_autocorrelation(left) * _autocorrelation(right))[1:].sum())
    return float(np.clip(n / max(1.0 + 2.0 * together, 1.0), _FEWEST, max(n, _FEWEST)))


def _autocorrelation(series: Floats) -> Floats:
    """ρ(k) for k = 0 … n − 1."""
    spectrum = np.fft.rfft(series - series.mean(), 2 * len(series))
    products = np.fft.irfft(np.abs(spectrum) ** 2)[: len(series)]
    return np.asarray(products / products[0])


def correlations(student: Floats, teacher: Floats) -> Correlations:
    """Of two series of one value per response token; NaN where unknown."""
    r, n = _by_shift(student, teacher)
    ranks, _ = _by_shift(_ranks(student), _ranks(teacher))
    known = np.isfinite(student) & np.isfinite(teacher)
    free = min(independent(student[known], teacher[known]), max(float(n.min()), _FEWEST))
    return Correlations(r, n, ranks, free)


def _by_shift(student: Floats, teacher: Floats) -> tuple[Floats, Floats]:
    """Pearson's r (NaN of what does not vary) and the number of pairs, for δ of :data:`SHIFTS`."""
    r, n = [], []
    for shift in SHIFTS:
        left = student[max(0, -shift) : len(student) - max(0, shift)]
        right = teacher[max(0, shift) : len(teacher) - max(0, -shift)]
        known = np.isfinite(left) & np.isfinite(right)
        left, right = left[known], right[known]
        n.append(len(left))
        varies = len(left) > 1 and np.ptp(left) > 0 and np.ptp(right) > 0
        r.append(np.corrcoef(left, right)[0, 1] if varies else np.nan)
    return np.array(r), np.array(n, dtype=np.float64)


def _ranks(series: Floats) -> Floats:
    """Of the finite values, equal ones alike; NaN elsewhere."""
    known = np.isfinite(series)
    ranks = np.full(len(series), np.nan)
    ranks[known] = rankdata(series[known])
    return ranks


_MEASURES = "per rollout, the δ in −3 … 3 with the largest correlation of log p_t with log q_{t+δ}"
_RULE = (
    "fail: in a rollout, or in all together, another δ has a correlation above 0.3 and beats δ = 0 by more than 0.1 "
    "and by more than three standard errors (of Fisher's z; two in ranks; a loop counts as a few tokens); warn: δ = 0 "
    "is not best in most rollouts. Rollouts with fewer than 10 pairs, or without variation, are counted and not judged"
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
    shifted = {index: one.best for index, one in judged.items() if one.shifted}
    together = pooled(list(judged.values()))
    at_zero = best.count(0)
    middle = float(np.median([one.r[SHIFTS.index(0)] for one in judged.values()]))
    values = {
        "n_judged": len(judged), "n_not_judged": short, "n_best_at_0": at_zero, "n_shifted": len(shifted),
        "best": {str(shift): best.count(shift) for shift in SHIFTS}, "median_correlation_at_0": middle,
        "best_of_all": together.best,
    }  # fmt: skip
    figure = f"δ = 0 is best in {at_zero} of {len(judged)} rollouts (median correlation there {middle:.2f})"
    if shifted:
        common = max(sorted(shifted.values()), key=list(shifted.values()).count)
        where = evidence.rollouts[next(index for index, shift in shifted.items() if shift == common)].id
        figure += f"; {len(shifted)} are shifted, most by δ = {common:+d}, as {where!r}"
    if together.shifted:
        figure += f"; all together by δ = {together.best:+d}"
    if short:
        figure += f"; {short} not judged"
    return Verdict(grade(fail=bool(shifted) or together.shifted, warn=2 * at_zero < len(judged)), figure, values)
