"""What this session of tests has measured, for the table in the documentation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from benchmarks.measuring import machine
from benchmarks.precision import Report, rounded
from tests.real.language_model import is_installed
from tests.real.pairs import Error, Pair

needs_the_model = pytest.mark.skipif(not is_installed(), reason="no language model is here; make real installs one")

MEASURED: Report = {**machine(), "pairs": {}, "rows": [], "readings": {}}


def note_pair(pair: Pair) -> None:
    """Keep what kind of states a pair has."""
    if pair.name in MEASURED["pairs"]:
        return
    rest = pair.truth["student_rest"]
    MEASURED["pairs"][pair.name] = {
        "states": len(pair.tokens),
        "rollouts": len(pair.rollouts),
        "overlap_ratio": rounded(pair.truth["overlap_ratio"].mean()),
        "reverse_kl": rounded(pair.truth["reverse_kl"].mean()),
        "confident": {f"1e-{n}": rounded(np.mean(rest < 10.0**-n)) for n in range(3, 9)},
    }


def record(pair: Pair, against: str, weights: str, path: str, found: Mapping[str, Error], sets: float) -> None:
    """Keep what one path measured of one pair.

    Args:
        against: what the float64 reference was given: the same ``logits``, ``hidden`` states, or the ``model``.
        sets: the share of states with another top-k set.
    """
    MEASURED["rows"].append(
        {
            "pair": pair.name,
            "against": against,
            "weights": weights,
            "path": path,
            "other_sets": rounded(sets),
            "metrics": {
                name: {
                    "mean": rounded(error.mean, 6),
                    "off": rounded(error.off),
                    "typical": rounded(error.typical),
                    "worst": rounded(error.worst),
                    "relative": rounded(error.relative),
                }
                for name, error in found.items()
            },
        }
    )
