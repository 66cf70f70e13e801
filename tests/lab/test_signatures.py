"""The rules, and the published table that they are applied to."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from opd_probe.lab.evaluate import proportion_interval
from opd_probe.lab.recipes import digest
from opd_probe.lab.signatures import PUBLISHED, RULES, SIGNATURE_RUNS, apply_rules, render

Stage = dict[str, float]


def stage(accuracy: float, overlap: float, advantage: float, gap: float, mass: float) -> Stage:
    return {
        "accuracy": accuracy,
        "overlap_ratio": overlap,
        "overlap_advantage": advantage,
        "entropy_gap": gap,
        "student_overlap_mass": mass,
        "reverse_kl": 0.1,
    }


def measurements() -> dict[str, Any]:
    start = stage(0.2, 0.7, -0.05, 0.6, 0.9)
    return {
        "seed": 0,
        "teachers": {
            "compatible-teacher": {"accuracy": 0.8},
            "incompatible-teacher": {"accuracy": 0.8},
        },
        "runs": {
            "compatible": {"start": start, "end": stage(0.6, 0.8, -0.01, 0.15, 0.97)},
            "incompatible": {"start": start, "end": stage(0.25, 0.7, -0.03, 0.4, 0.9)},
        },
    }


BREAKING = [
    ("accuracy_doubles", ("compatible", "end", "accuracy"), 0.39),
    ("overlap_rises", ("compatible", "end", "overlap_ratio"), 0.7),
    ("advantage_shrinks", ("compatible", "end", "overlap_advantage"), -0.011),
    ("entropy_gap_shrinks", ("compatible", "end", "entropy_gap"), 0.21),
    ("mass_is_shared", ("compatible", "end", "student_overlap_mass"), 0.959),
    ("little_is_learned", ("incompatible", "end", "accuracy"), 0.34),
    ("advantage_stagnates", ("incompatible", "end", "overlap_advantage"), -0.019),
    ("entropy_gap_stagnates", ("incompatible", "end", "entropy_gap"), 0.29),
]


def test_all_rules_hold_on_a_textbook_case() -> None:
    verdicts = apply_rules(measurements())
    assert list(verdicts) == [rule.name for rule in RULES]
    assert all(verdict["holds"] for verdict in verdicts.values())


@pytest.mark.parametrize(("rule", "where", "value"), BREAKING)
def test_a_rule_fails_just_beyond_its_bound(rule: str, where: tuple[str, str, str], value: float) -> None:
    seed = measurements()
    run, moment, metric = where
    seed["runs"][run] = {name: dict(values) for name, values in seed["runs"][run].items()}
    seed["runs"][run][moment][metric] = value
    assert apply_rules(seed)[rule]["holds"] is False


def test_teachers_must_be_equals() -> None:
    seed = measurements()
    seed["teachers"]["incompatible-teacher"]["accuracy"] = 0.74
    assert apply_rules(seed)["teachers_are_equals"]["holds"] is False


def test_nan_never_holds() -> None:
    assert not any(rule.holds(math.nan) for rule in RULES)


def test_bounds_are_those_that_were_promised() -> None:
    bounds = {rule.name: (rule.comparison, rule.bound) for rule in RULES}
    assert bounds == {
        "accuracy_doubles": ("at least", 2.0),
        "overlap_rises": ("above", 0.0),
        "advantage_shrinks": ("at least", 5.0),
        "entropy_gap_shrinks": ("at least", 3.0),
        "mass_is_shared": ("at least", 0.96),
        "teachers_are_equals": ("at least", -0.05),
        "little_is_learned": ("at most", 1 / 3),
        "advantage_stagnates": ("at least", 2.0),
        "entropy_gap_stagnates": ("at least", 2.0),
    }


def test_wilson_interval_covers_the_share_and_stays_in_bounds() -> None:
    low, high = proportion_interval(0.3, 1000)
    assert (low, high) == pytest.approx((0.2724, 0.3292), abs=1e-4)
    assert proportion_interval(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert proportion_interval(1.0, 10)[1] <= 1.0


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(PUBLISHED.read_text())
    return table


def test_published_table_has_three_seeds_of_enough_rollouts(published: dict[str, Any]) -> None:
    assert [row["seed"] for row in published["seeds"]] == [0, 1, 2]
    for row in published["seeds"]:
        for stages in row["runs"].values():
            assert list(stages) == ["start", "middle", "end"]
            assert all(values["n_rollouts"] >= 1000 for values in stages.values())


def test_published_table_belongs_to_the_recipes(published: dict[str, Any]) -> None:
    assert published["recipes"] == {name: digest(name, 0) for name in SIGNATURE_RUNS}


def test_published_verdicts_follow_from_the_published_values(published: dict[str, Any]) -> None:
    for row in published["seeds"]:
        again = apply_rules(row)
        for name, verdict in row["rules"].items():
            assert verdict["holds"] is again[name]["holds"]
            assert verdict["value"] == pytest.approx(again[name]["value"], rel=1e-3)
            assert verdict["statement"] == again[name]["statement"]


def test_table_prints_every_seed_and_rule(published: dict[str, Any]) -> None:
    text = render(published)
    assert all(f"seed {row['seed']}" in text for row in published["seeds"])
    assert text.count("holds") + text.count("FAILS") == len(RULES) * len(published["seeds"])
