"""Parts of a report: what stands behind its curves, kinds of tokens, when a token came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opd_probe.models.decoding import Decoder
from opd_probe.results import references
from opd_probe.results.report_timeline import first_at
from opd_probe.results.token_kinds import KINDS, kind_of
from tests.tiny import tiny_tokenizer

DATA = Path(__file__).parents[2] / "figures" / "data" / "curves.parquet"


def test_the_runs_behind_the_curves_are_those_of_the_lab() -> None:
    table = pd.read_parquet(DATA)
    table = table[(table["experiment"] == references.LAB_EXPERIMENT) & (table["k"] == references.AT_K)]
    for run, metrics in references.LAB_RUNS.items():
        means = table[table["run"] == run].groupby("step")[[*metrics, "accuracy"]].mean()
        assert tuple(means.index) == references.LAB_STEPS
        for metric, values in metrics.items():
            np.testing.assert_allclose(values, means[metric], atol=5.1e-4)
        first, last = means["accuracy"].iloc[[0, -1]]
        said = f"{first:.0%}".rstrip("%"), f"{last:.0%}".rstrip("%")
        assert (f"{said[0]} → {said[1]} %" if said[0] != said[1] else f"({said[0]} %, flat)") in references.LAB_SAYS


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("12", "digits"), ("3.5", "digits"), ("x2", "words"), ("Thus", "reasoning"), ("wait,", "reasoning"),
        ("table", "words"), ("+", "symbols"), ("\\frac", "words"), ("**", "layout"), ("###", "layout"),
        ("\n\n", "layout"), (".\n", "layout"), (" ", "layout"), ("=", "symbols"), ("x\n", "words"), ("一", "words"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(word: str, kind: str) -> None:
    decoder = Decoder(tiny_tokenizer(words=[word]))
    assert kind_of(3, decoder, {1}) == kind
    assert kind_of(1, decoder, {1}) == "specials"
    assert kind_of(3, Decoder(), set()) == "unnamed"
    assert {kind, "specials", "unnamed"} <= {*KINDS}


def test_when_a_token_came() -> None:
    changed = np.array([0.0, 0.0, 2.0, 0.0, 9.0, 12.0])
    assert first_at(changed, 0.0) == 2
    assert first_at(changed, 6.0) == 4
