"""Verdicts on runs whose course is known: a student that comes closer, stays, leaves, or was there from the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opd_probe.curves.trend import course
from opd_probe.results.courses import METRICS, repetition
from opd_probe.results.verdict import RULES, Facts, Judgement, judge
from opd_probe.trace import Trace
from tests.samples import grouped_trace

K = 8
OWN = Facts(("own",) * 9, ("sampled_ids",) * 9, (None,) * 9)


def rows(prompts: int, *, accuracy: float = 0.5, truncated: float = 0.0, length: int = 6) -> list[dict[str, Any]]:
    """Two rollouts of each prompt, of which the first share is right, and the first share cut."""
    n = 2 * prompts
    return [
        {
            "prompt_id": f"p{index // 2}",
            "n_states": length,
            "score": float(index < accuracy * n),
            "finish_reason": "length" if index < truncated * n else "stop",
        }
        for index in range(n)
    ]


def at(distance: float, given: list[dict[str, Any]], *, sharp: float = 1.0, seed: int = 0) -> Trace:
    """A trace whose teacher is ``distance`` away from its student in every logit."""
    generator = np.random.default_rng(seed)
    n = sum(row["n_states"] for row in given)
    teacher = generator.normal(size=(n, 40)) * 2
    student = (teacher + distance * generator.normal(size=(n, 40))) * sharp
    tokens = generator.integers(0, 40, size=n)
    return grouped_trace(given, k=K, logits=(student.astype(np.float32), teacher.astype(np.float32), tokens))


def verdict(traces: list[Trace], facts: Facts = OWN) -> Judgement:
    return judge(course(traces, range(len(traces)), K, METRICS, "token"), facts)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((2.0, 1.4, 0.8), "aligning"),
        ((2.0, 0.5), "aligning"),
        ((1.6, 1.61, 1.59, 1.6), "stagnating"),
        ((0.8, 1.2, 1.8), "drifting"),
        ((0.05, 0.05, 0.05), "aligned"),
        ((0.05,), "aligned"),
        ((2.0,), "unclear"),
    ],
)
def test_course_decides_the_verdict(distances: tuple[float, ...], expected: str) -> None:
    traces = [at(distance, rows(60), seed=seed) for seed, distance in enumerate(distances)]
    said = verdict(traces)
    assert said.verdict == expected
    assert next(iter(said.evidence)) == expected
    assert said.evidence[expected].values["n_prompts"] == 60
    assert ("few_steps" in said.qualifiers) == (len(distances) < 3)


def test_the_same_states_again_stagnate() -> None:
    trace = at(1.6, rows(30))
    said = verdict([trace, trace, trace])
    assert said.verdict == "stagnating"
    assert said.evidence["stagnating"].values["closed_share"] == {"value": 0, "lo": 0, "hi": 0}


def test_few_prompts_cannot_tell() -> None:
    said = verdict([at(1.6, rows(3), seed=1), at(1.5, rows(3), seed=2)])
    assert said.verdict == "unclear"
    assert {"few_prompts", "few_steps"} <= {*said.qualifiers}


def test_alignment_without_accuracy_is_qualified() -> None:
    """The overlap rises while accuracy stays flat and most responses are cut."""
    steps = zip((2.0, 1.4, 0.8), (0.08, 0.05, 0.02), (0.1, 0.5, 0.77), strict=True)
    traces = [
        at(distance, rows(60, accuracy=right, truncated=cut), seed=seed)
        for seed, (distance, right, cut) in enumerate(steps)
    ]
    said = verdict(traces)
    assert said.verdict == "aligning"
    assert {"accuracy_flat", "truncation"} <= {*said.qualifiers}
    assert "does not get better" in said.sentence
    assert said.evidence["truncation"].values["last"]["value"] == pytest.approx(92 / 120, abs=0.01)


@pytest.mark.parametrize(
    ("right", "expected"), [((0.1, 0.6), None), ((0.5, 0.5), "accuracy_flat"), ((0.8, 0.2), "accuracy_falls")]
)
def test_accuracy_is_flat_falls_or_rises(right: tuple[float, float], expected: str | None) -> None:
    said = verdict([at(1.6, rows(60, accuracy=one), seed=seed) for seed, one in enumerate(right)])
    assert [name for name in said.qualifiers if name.startswith("accuracy")] == ([expected] if expected else [])


def test_unknown_accuracy_is_said() -> None:
    given = [{**row, "score": None} for row in rows(30)]
    assert "accuracy_unknown" in verdict([at(1.6, given), at(1.6, given, seed=1)]).qualifiers


def test_the_same_responses_at_every_step_say_nothing_of_accuracy() -> None:
    traces = [at(1.6, rows(60)), at(1.6, rows(60), seed=1)]
    fixed = verdict(traces, Facts(("fixed",) * 2, ("sampled_ids",) * 2, (None,) * 2))
    assert [name for name in fixed.qualifiers if name.startswith("accuracy")] == ["accuracy_unknown"]


def test_lengths_and_entropies() -> None:
    longer = verdict([at(1.6, rows(30, length=4)), at(1.6, rows(30, length=9), seed=1)])
    assert "length_drift" in longer.qualifiers
    assert "become longer" in longer.evidence["length_drift"].text
    collapsed = verdict([at(0.5, rows(30)), at(0.5, rows(30), sharp=6, seed=1)])
    assert "entropy_collapse" in collapsed.qualifiers
    assert "entropy_collapse" not in verdict([at(2.0, rows(30)), at(0.3, rows(30), seed=1)]).qualifiers


def test_a_late_reversal_is_seen() -> None:
    traces = [at(distance, rows(60), seed=seed) for seed, distance in enumerate((2.0, 0.6, 1.8))]
    said = verdict(traces)
    assert said.evidence["late_reversal"].values["best_step"] == 1


def test_facts_qualify() -> None:
    traces = [at(1.6, rows(30)), at(1.6, rows(30), seed=1)]
    facts = Facts(("fixed", "unknown"), ("sampled_ids", "retokenized"), ("temperature 0.7", None), 0.6, 0.2, 0.03)
    expected = {
        "off_policy", "states_unknown", "retokenized", "led_by_few_tokens", "repetition", "mass_outside",
    }  # fmt: skip
    said = verdict(traces, facts)
    assert expected <= {*said.qualifiers}
    assert not expected & {*verdict(traces).qualifiers}
    assert all(said.evidence[name].text.endswith(".") for name in said.qualifiers)
    assert {*said.qualifiers} <= {*RULES}


def test_repetition_is_of_long_responses() -> None:
    given = [{"prompt_id": f"p{index}", "n_states": 70 if index < 4 else 5} for index in range(6)]
    n = sum(row["n_states"] for row in given)
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 40, size=n)
    tokens[6:70] = np.tile([1, 2, 3, 4, 5, 6, 7, 8], 8)  # the first of four long ones goes in a circle
    logits = generator.normal(size=(n, 40)).astype(np.float32)
    assert repetition(grouped_trace(given, k=K, logits=(logits, logits, tokens))) == 0.25
    assert np.isnan(repetition(at(1.0, rows(4))))
