"""Overlaps of one token, where the advantage is 0 whatever the models say: counted, and said where they decide."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.curves.remarks import single_overlap_decides
from opd_probe.trace import Trace
from tests import reference
from tests.plots.examples import COMPATIBLE, run_rows
from tests.samples import grouped_trace, many_prompts, random_pair

DECIDES = "the overlap at k = 4 is one token.*decides over its mean"


def trace_of(*, distance: float, related: bool, seed: int = 0) -> Trace:
    """Forty prompts of a pair of models that share a little (another one at each state) or most of what they rank."""
    rollouts = many_prompts(40)
    student, teacher, tokens = random_pair(
        sum(int(row["n_states"]) for row in rollouts), 60, distance=distance, seed=seed
    )
    if not related:
        teacher = np.random.default_rng(1).permuted(teacher, axis=1)
        best = student.argmax(1)[:, None]
        np.put_along_axis(teacher, best, teacher.max(1, keepdims=True) + 1, 1)  # one token in common
    return grouped_trace(rollouts, k=16, vocabulary=60, logits=(student, teacher, tokens))


def said(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found]


@pytest.mark.filterwarnings("ignore:at .* states the overlap:opd_probe.OpdProbeWarning")
@pytest.mark.parametrize("k", [2, 4, 16])
def test_the_count_and_the_mean_without(k: int) -> None:
    student, teacher, tokens = random_pair(300, 60, distance=3.0)
    row = opd_probe.summarize(opd_probe.trace_logits(student, teacher, tokens, 16), k, resamples=0)
    wanted = reference.states(student, teacher, tokens, k)
    shared = np.array([state["overlap_ratio"] * k for state in wanted]).round()
    assert (
        row["n_single_overlap"]
        == (shared == 1).sum()
        == row["overlap_advantage_n"] - row["overlap_advantage_beyond_one_n"]
    )
    values = np.array([state["overlap_advantage"] for state in wanted])
    assert row["overlap_advantage"] == pytest.approx(np.nanmean(values), rel=1e-5)
    assert row["overlap_advantage_beyond_one"] == pytest.approx(values[shared > 1].mean(), rel=1e-5)


def test_it_is_said_where_it_decides_and_nowhere_else() -> None:
    far, near = trace_of(distance=0.5, related=False), trace_of(distance=0.5, related=True)
    with pytest.warns(opd_probe.OpdProbeWarning, match=DECIDES):
        row = opd_probe.summarize(far, 4)
    beyond = row["overlap_advantage_beyond_one"]
    assert not row["overlap_advantage_lo"] <= beyond <= row["overlap_advantage_hi"]
    assert single_overlap_decides(row)
    row = opd_probe.summarize(near, 4)
    assert 0 < row["n_single_overlap"] < row["n_states"] / 10
    assert not single_overlap_decides(row)
    assert said(lambda: opd_probe.summarize(far, 1)) == [
        text for text in said(lambda: opd_probe.summarize(far, 1)) if text.startswith("k = 1")
    ]


def test_without_intervals_half_of_the_overlaps_decides() -> None:
    row = {"k": 4, "overlap_advantage": -0.2, "overlap_advantage_n": 100, "overlap_advantage_beyond_one": -0.22}
    assert not single_overlap_decides({**row, "overlap_advantage_beyond_one_n": 50})
    assert single_overlap_decides({**row, "overlap_advantage_beyond_one_n": 49})
    assert not single_overlap_decides({**row, "overlap_advantage_beyond_one_n": 100})
    only = {**row, "overlap_advantage": 0.0, "overlap_advantage_beyond_one": None, "overlap_advantage_beyond_one_n": 0}
    assert single_overlap_decides(only)
    assert not single_overlap_decides({"k": 4})


def test_a_difference_that_turns_around() -> None:
    """The pair that shares one token at most states looks better aligned than the related one."""
    near, far = trace_of(distance=0.5, related=True), trace_of(distance=0.5, related=False)
    with pytest.warns(
        opd_probe.OpdProbeWarning, match="of A and .* of B the overlap at k = 4 is one token.*difference"
    ):
        table = opd_probe.compare(near, far, 4)
    rows = table.set_index("metric")["difference"]
    assert rows["overlap_advantage"] > 0 > rows["overlap_advantage_beyond_one"]
    assert any("one token" in text for text in said(lambda: opd_probe.compare(near, far, 4, resamples=0)))
    assert not any("one token" in text for text in said(lambda: opd_probe.compare(near, near, 16)))
    figure = opd_probe.plot_comparison(table)
    assert "Overlaps of one token, which count 0, decide over the overlap advantage." in note(figure)


def note(figure: Any) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts if text.get_gid() == "note")


def test_figures_say_it() -> None:
    import pandas as pd

    table = pd.DataFrame(run_rows("a", COMPATIBLE))
    assert "one token" not in note(opd_probe.plot_overlap(table))
    counted = table.assign(overlap_advantage_n=1000, overlap_advantage_beyond_one_n=980)
    counted["overlap_advantage_beyond_one"] = counted["overlap_advantage"] / 0.98
    assert "one token" not in note(opd_probe.plot_overlap(counted))
    counted.loc[2:3, "overlap_advantage_beyond_one_n"] = 400
    counted.loc[2:3, "overlap_advantage_beyond_one"] = counted["overlap_advantage"] / 0.4
    wanted = f"decide over the overlap advantage at 2 of {len(table)} points"
    for figure in (opd_probe.plot_overlap(counted), opd_probe.plot_alignment(counted)):
        assert wanted in note(figure)
    assert "one token" not in note(opd_probe.plot_alignment(counted, metrics=["overlap_ratio"]))
