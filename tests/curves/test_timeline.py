"""What enters and leaves the overlap, from checkpoint to checkpoint, against plain loops over states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.curves import timeline as module
from opd_probe.curves.timeline import overlap_change, overlap_timeline, same_states
from opd_probe.errors import TraceError
from opd_probe.trace import Trace
from tests.samples import grouped_trace, many_prompts, random_pair

K = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 states, so that rollouts are cut by them."""
    monkeypatch.setattr(module, "BLOCK_STATES", 16)


def state_sets(trace: Trace, k: int) -> Iterator[dict[int, float]]:
    """For each state the tokens of its overlap, with the student's probability of each."""
    columns = [trace.column(name) for name in ("student_top_ids", "student_top_logprobs", "teacher_top_ids")]
    for own, logs, other in zip(*columns, strict=True):
        both = set(own[:k].tolist()) & set(other[:k].tolist())
        p = np.exp(logs.astype(np.float64))
        yield {int(token): float(p[rank]) for rank, token in enumerate(own[:k]) if int(token) in both}


def checkpoints(rollouts: list[dict[str, Any]], seed: int, count: int = 2) -> list[Trace]:
    """Checkpoints at the same states: each with other logits, the same tokens."""
    total = sum(row["n_states"] for row in rollouts)
    student, teacher, tokens = random_pair(total, 40, seed=seed)
    traces = []
    for place in range(count):
        moved = student + np.random.default_rng(place).normal(0, place, student.shape).astype(np.float32)
        traces.append(grouped_trace(rollouts, logits=(moved, teacher, tokens)))
    return traces


def of(counter: Counter[int], size: int) -> list[float]:
    return [counter[token] for token in range(size)]


def test_what_enters_and_leaves_at_the_same_states(tmp_path: Path) -> None:
    traces = checkpoints(many_prompts(20), 1, count=3)
    assert all(same_states(traces[0], later) for later in traces)
    stored = [traces[0].save(tmp_path / "a.parquet"), *traces[1:]]
    found = overlap_timeline(stored, K)
    assert found.paired
    assert found.n == (traces[0].n_states,) * 3
    sets = [list(state_sets(trace, K)) for trace in traces]
    size = found.present.shape[1]
    for place in range(3):
        names = ("present", "mass", "entered", "entered_mass", "left", "left_mass")
        sums: dict[str, Counter[int]] = {name: Counter() for name in names}
        for first, now in zip(sets[0], sets[place], strict=True):
            for name, members in (
                ("present", now),
                ("entered", {token: now[token] for token in now.keys() - first.keys()}),
                ("left", {token: first[token] for token in first.keys() - now.keys()}),
            ):
                sums[name].update(members.keys())
                for token, p in members.items():
                    sums["mass" if name == "present" else f"{name}_mass"][token] += p
        for name in names:
            np.testing.assert_allclose(getattr(found, name)[place], of(sums[name], size), rtol=1e-12, err_msg=name)
    assert found.entered[2].sum() > 20
    assert not found.entered[0].any()


def test_the_sums_over_tokens_are_the_means_of_the_trace() -> None:
    traces = checkpoints(many_prompts(20), 2, count=2)
    found = overlap_timeline(traces, K)
    for place, trace in enumerate(traces):
        row = opd_probe.summarize(trace, K, resamples=0, metrics=["overlap_ratio", "student_overlap_mass"])
        assert found.present[place].sum() / (K * trace.n_states) == pytest.approx(row["overlap_ratio"], rel=1e-12)
        assert found.mass[place].sum() / trace.n_states == pytest.approx(row["student_overlap_mass"], rel=1e-12)


def test_two_traces_are_the_change_between_them() -> None:
    earlier, between, later = checkpoints(many_prompts(20), 1, count=3)
    change, found = overlap_change(earlier, later, K), overlap_timeline([earlier, between, later], K)
    assert change.paired
    size = len(change.entered)
    np.testing.assert_array_equal(found.entered[2][:size], change.entered)
    np.testing.assert_array_equal(found.left[2][:size], change.left)
    none = overlap_change(earlier, earlier, K)
    assert none.entered.sum() == none.left.sum() == 0


def test_what_enters_and_leaves_at_other_states() -> None:
    trace, other = grouped_trace(many_prompts(20), seed=3), grouped_trace(many_prompts(12, seed=5), seed=8)
    found = overlap_timeline([other, trace, trace], K)
    assert not found.paired
    size = found.present.shape[1]
    rates, masses = [], []
    for one in (other, trace):
        counts, sums = Counter[int](), Counter[int]()
        for members in state_sets(one, K):
            counts.update(members.keys())
            for token, p in members.items():
                sums[token] += p
        rates.append(np.array(of(counts, size)) / one.n_states)
        masses.append(np.array(of(sums, size)) / one.n_states)
    change = overlap_change(other, trace, K)
    for entered, left in ((found.entered[2], found.left[2]), (change.entered, change.left)):
        np.testing.assert_allclose(entered, np.maximum(rates[1] - rates[0], 0))
        np.testing.assert_allclose(left, np.maximum(rates[0] - rates[1], 0))
    np.testing.assert_allclose(found.entered_mass[2], np.maximum(masses[1] - masses[0], 0), atol=1e-15)
    np.testing.assert_allclose(found.left_mass[2], np.maximum(masses[0] - masses[1], 0), atol=1e-15)


def test_one_trace_alone_changes_nothing() -> None:
    trace = grouped_trace(many_prompts(5), seed=3)
    found = overlap_timeline([trace], K)
    assert found.present.shape[0] == 1
    assert not found.entered.any()


def test_a_k_beyond_a_trace_is_refused() -> None:
    trace = grouped_trace(many_prompts(5), seed=3)
    with pytest.raises(TraceError, match="k = 9"):
        overlap_change(trace, trace, 9)
