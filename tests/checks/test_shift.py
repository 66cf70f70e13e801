"""Teacher log-probabilities of other tokens than the student's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr

from opd_probe.checks import CheckOptions, Pair, examine, gather
from opd_probe.checks.shift import SHIFTS, correlations, independent, pooled
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic


def moved(rollout: Rollout, by: int) -> Rollout:
    """The rollout with each teacher log-probability ``by`` places later; the gap is filled with nothing."""
    values = list(rollout.extra["teacher_logprobs"])
    gap = [None] * abs(by)
    values = [*gap, *values[: len(values) - by]] if by > 0 else [*values[-by:], *gap]
    return replace(rollout, extra={**rollout.extra, "teacher_logprobs": values})


@pytest.mark.parametrize("by", [1, -1, 2])
def test_stored_ones_that_are_shifted(clinic: Clinic, by: int) -> None:
    found = clinic.findings(clinic.altered(lambda rollout: moved(rollout, by)))
    line = found["shift_stored"]
    assert line.status == "fail"
    assert line.values["n_best_at_0"] == 0
    assert line.values["best"][str(by)] == line.values["n_judged"] == 16
    assert f"most by δ = {by:+d}" in line.figure
    assert found["shift_replayed"].status == "ok"
    assert found["self_score_stored"].status == "fail"


def test_one_shifted_rollout_among_others(clinic: Clinic) -> None:
    first, *others = clinic.rollouts
    line = clinic.findings([moved(first, 1), *others])["shift_stored"]
    assert line.status == "fail"
    assert (line.values["n_shifted"], line.values["n_best_at_0"]) == (1, 15)
    assert f"as {first.id!r}" in line.figure


def test_short_rollouts_are_judged_together(clinic: Clinic) -> None:
    """In 15 tokens alone a shift is no certainty."""

    def short(rollout: Rollout) -> Rollout:
        late = moved(rollout, 1)
        extra = {"teacher_logprobs": list(late.extra["teacher_logprobs"])[:15]}
        return replace(late, response_ids=late.response_ids[:15], logprobs=None, extra=extra)

    line = clinic.findings(clinic.altered(short))["shift_stored"]
    assert line.status == "fail"
    assert line.values["best_of_all"] == 1
    assert line.values["n_shifted"] < line.values["n_judged"]
    assert "all together by δ = +1" in line.figure


def test_one_value_too_few(clinic: Clinic) -> None:
    first, *others = clinic.rollouts
    short = replace(first, extra={"teacher_logprobs": list(first.extra["teacher_logprobs"])[1:]})
    line = clinic.findings([short, *others])["shift_stored"]
    n = len(first.response_ids)
    assert line.status == "fail"
    assert f"rollout {first.id!r} has {n - 1} teacher log-probs for {n} response tokens" in line.figure


def test_short_rollouts_are_counted_and_not_judged(clinic: Clinic) -> None:
    short = [
        replace(r, response_ids=r.response_ids[:12], logprobs=None, extra={}) for r in clinic.rollouts[:5]
    ]  # 12 tokens leave 9 pairs at δ = 3
    line = clinic.findings([*short, *clinic.rollouts[5:]])["shift_replayed"]
    assert line.status == "ok"
    assert (line.values["n_judged"], line.values["n_not_judged"]) == (11, 5)
    assert line.figure.endswith("; 5 not judged")
    assert clinic.findings(short)["shift_replayed"].status == "skip"


def test_no_or_unusable_teacher_scores(clinic: Clinic) -> None:
    for extra in ({}, {"teacher_logprobs": "none"}, {"teacher_logprobs": ["x"] * 24}):
        rollouts = clinic.altered(lambda rollout, extra=extra: replace(rollout, extra=extra))  # type: ignore[misc]
        found = clinic.findings([r for r in rollouts if len(r.response_ids) == 24])
        assert found["shift_stored"].status == "skip"
        assert found["self_score_stored"].status == "skip"


def test_a_replay_that_reads_the_teacher_one_token_late(clinic: Clinic) -> None:
    """A defect of our own that the line guards against, so that it is planted behind the replay."""
    models = clinic.models
    options = CheckOptions(k=32)
    evidence = gather(Pair(lambda: models["student"], lambda: models["teacher"]), clinic.rollouts, options)
    late = {
        index: {**columns, "teacher_logprob": np.roll(columns["teacher_logprob"], 1)}
        for index, columns in evidence.states.items()
    }
    found = {finding.check: finding for finding in examine(replace(evidence, states=late))}
    assert found["shift_replayed"].status == "fail"
    assert found["shift_replayed"].values["best"]["1"] == 16
    assert found["shift_stored"].status == "ok"


def test_correlations_are_pearsons_over_known_pairs() -> None:
    generator = np.random.default_rng(3)
    student = generator.normal(size=40)
    teacher = np.concatenate([generator.normal(size=2), student[:-2]]) + 0.3 * generator.normal(size=40)
    student[5] = teacher[20] = np.nan
    found = correlations(student, teacher)
    for place, shift in enumerate(SHIFTS):
        pairs = [
            (student[t], teacher[t + shift])
            for t in range(40)
            if 0 <= t + shift < 40 and np.isfinite(student[t]) and np.isfinite(teacher[t + shift])
        ]
        assert found.n[place] == len(pairs)
        assert found.r[place] == pytest.approx(pearsonr(*zip(*pairs, strict=True))[0])
    assert (found.best, found.shifted, found.judged) == (2, True, True)
    assert pooled([found]).r == pytest.approx(found.r)


def test_chance_is_no_shift() -> None:
    """Of unrelated series some δ is always best; seldom by three standard errors, and of long ones never by much."""
    generator = np.random.default_rng(0)
    for length, most in ((60, 15), (600, 0)):
        found = [correlations(generator.normal(size=length), generator.normal(size=length)) for _ in range(300)]
        assert sum(one.best != 0 for one in found) > 200
        assert sum(one.shifted for one in found) <= most
        assert not pooled(found).shifted


def test_a_series_that_does_not_vary_is_not_judged() -> None:
    assert not correlations(np.zeros(40), np.arange(40.0)).judged


def surprises(generator: np.random.Generator, length: int) -> np.ndarray:
    """Log-probabilities as models give them: most near 0, a few far below."""
    return np.asarray(-(generator.exponential(size=length) ** 3))


@pytest.mark.parametrize("length", [14, 25, 60])
def test_a_few_surprising_tokens_are_no_shift(length: int) -> None:
    generator = np.random.default_rng(1)
    made = [(surprises(generator, length), surprises(generator, length)) for _ in range(500)]
    found = [correlations(p, 0.3 * p + own) for p, own in made]
    assert sum(one.shifted for one in found) <= 2
    late = [correlations(p, np.roll(p + 0.5 * own, 1)) for p, own in made]
    assert pooled(late[:16]).shifted
    assert not pooled(found[:16]).shifted


def test_a_loop_is_worth_a_few_tokens() -> None:
    """Both models learn it, the one a little later than the other: a shift by its period, and no fault."""
    generator = np.random.default_rng(2)
    period, places = surprises(generator, 3), np.arange(300)
    student, teacher = np.tile(period, 100) * np.exp(-places / 20), np.tile(0.7 * period, 100)
    teacher = teacher * np.exp(-np.maximum(places - 6, 0) / 20)
    assert independent(np.tile(period, 100), np.tile(period, 100)) < 10
    assert not correlations(student, teacher).shifted
    assert independent(generator.normal(size=300), generator.normal(size=300)) > 200
