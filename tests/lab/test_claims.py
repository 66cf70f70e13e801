"""Claims: what a rule decides, how intervals travel, and that published verdicts follow from published tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from opd_probe.lab.claims import CLAIMS, Claim, judge
from opd_probe.lab.reading import Tables, Value
from opd_probe.lab.tables import read_tables

FIGURES = Path(__file__).parents[2] / "figures"


def claim(comparison: str, bound: float, over: str = "every seed") -> Claim:
    return Claim("c", "1", "s", "m", lambda _: Value(0.0), comparison, bound, over)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("comparison", "kept", "broken"),
    [("above", 0.51, 0.5), ("below", 0.49, 0.5), ("at least", 0.5, 0.49), ("at most", 0.5, 0.51)],
)
def test_a_bound_is_kept_or_not(comparison: str, kept: float, broken: float) -> None:
    assert claim(comparison, 0.5).keeps(kept)
    assert not claim(comparison, 0.5).keeps(broken)
    assert not claim(comparison, 0.5).keeps(math.nan)


def test_every_seed_or_their_mean() -> None:
    assert claim("above", 0.0).holds([0.1, 0.2, 0.3])
    assert not claim("above", 0.0).holds([0.5, 0.2, -0.1])
    assert claim("above", 0.0, "the mean over seeds").holds([0.5, 0.2, -0.1])
    assert not claim("above", 0.0, "the mean over seeds").holds([0.5, math.nan, 0.1])


def test_intervals_travel_through_differences_ratios_and_absolute_values() -> None:
    a, b = Value(0.5, 0.4, 0.7), Value(0.2, 0.1, 0.25)
    difference = a - b
    assert difference.value == pytest.approx(0.3)
    assert difference.lo == pytest.approx(0.3 - math.hypot(0.1, 0.05))
    assert difference.hi == pytest.approx(0.3 + math.hypot(0.2, 0.1))
    ratio = a / b
    assert (ratio.value, ratio.lo, ratio.hi) == pytest.approx((2.5, 1.6, 7.0))
    assert math.isnan((a / Value(0.1, -0.1, 0.2)).lo)
    assert math.isnan((a / Value(0.0)).value)
    flipped = abs(Value(-0.3, -0.4, 0.1))
    assert (flipped.value, flipped.lo, flipped.hi) == pytest.approx((0.3, 0.0, 0.4))


def test_tables_of_a_seed_are_read_by_step_and_run() -> None:
    rows = [
        {
            "experiment": "e",
            "run": "r",
            "seed": seed,
            "k": 16,
            "step": step,
            "x": seed + step / 10,
            "x_lo": 0.0,
            "x_hi": 9.0,
        }
        for seed in (0, 1)
        for step in (5, 0)
    ]
    tables = Tables({"curves": pd.DataFrame(rows)}, 1)
    assert tables.start("e", "r", "x").value == 1.0
    assert tables.end("e", "r", "x") == Value(1.5, 0.0, 9.0)
    assert tables.gain("e", "r", "x").value == pytest.approx(0.5)
    with pytest.raises(LookupError):
        tables.start("e", "another", "x")


def test_there_are_enough_claims_and_each_says_all_there_is_to_say() -> None:
    assert len(CLAIMS) >= 20
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.figure and claim.statement and claim.measure for claim in CLAIMS)


@pytest.fixture(scope="module")
def published() -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = json.loads((FIGURES / "claims.json").read_text())["claims"]
    return claims


def test_published_verdicts_follow_from_the_published_tables(published: list[dict[str, Any]]) -> None:
    assert judge(read_tables(FIGURES / "data")) == published


def test_a_claim_that_does_not_hold_says_what_was_tried(published: list[dict[str, Any]]) -> None:
    for row in published:
        assert len(row["seeds"]) >= 3
        assert row["holds"] or row["tried"], row["name"]
