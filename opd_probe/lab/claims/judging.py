"""The verdicts on all claims, from the aggregated tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

import opd_probe.lab.claims.mechanism as mechanism
import opd_probe.lab.claims.phenomena as phenomena
import opd_probe.lab.claims.recipe as recipe
from opd_probe.atomic import whole_file
from opd_probe.lab.claims.claim import Claim
from opd_probe.lab.claims.tried import TRIED
from opd_probe.lab.experiments import SEEDS
from opd_probe.lab.reading import Tables, Value

CLAIMS: Final = (*phenomena.CLAIMS, *mechanism.CLAIMS, *recipe.CLAIMS)
"""Every claim, in the order of the experiments."""


def judge(tables: Mapping[str, pd.DataFrame], seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Every claim on the aggregated tables: its rule, its value on every seed, and whether it holds.

    A claim whose rows are not there yet has null values and does not hold.
    """
    return [_judged(claim, {seed: Tables(tables, seed) for seed in seeds}) for claim in CLAIMS]


def _judged(claim: Claim, seeds: Mapping[int, Tables]) -> dict[str, Any]:
    values = {seed: _measured(claim, tables) for seed, tables in seeds.items()}
    holds = claim.holds([value.value for value in values.values()])
    return {
        "name": claim.name,
        "figure": claim.figure,
        "statement": claim.statement,
        "measure": claim.measure,
        "rule": f"{claim.comparison} {claim.bound:.4g} on {claim.over}",
        "seeds": [
            {"seed": seed}
            | {end: _rounded(getattr(value, end)) for end in ("value", "lo", "hi")}
            | {"holds": claim.keeps(value.value)}
            for seed, value in values.items()
        ],
        "holds": holds,
        "tried": "" if holds else TRIED.get(claim.name, ""),
    }


def _measured(claim: Claim, tables: Tables) -> Value:
    try:
        return claim.quantity(tables)
    except LookupError:
        return Value(math.nan)


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def write_claims(tables: Mapping[str, pd.DataFrame], path: Path, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Judge every claim and write the verdicts as JSON; returns them."""
    verdicts = judge(tables, seeds)
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps({"claims": verdicts}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return verdicts
