"""Whole replays on every path and of every type of weights, against the models' own forward pass in float64.

What rounding in the layers does is known from transformers' own pass, each rollout by itself, whose logits go through
float64 statistics: no path may be further off than a few times that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import opd_probe
from benchmarks.precision import is_count
from opd_probe.engine import batching
from opd_probe.models import loading
from opd_probe.stats import compiled, native
from opd_probe.trace import Trace
from tests.models.served.recorded_server import serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.real.measured import needs_the_model, record
from tests.real.pairs import DEPTH, K, Pair, errors, other_sets, values_of

pytestmark = [needs_the_model, pytest.mark.filterwarnings("ignore::opd_probe.errors.OpdProbeWarning")]

Change = pytest.MonkeyPatch
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")


def replayed(pair: Pair, **options: object) -> Trace:
    return opd_probe.replay(pair.student, pair.teacher, pair.rollouts, k=DEPTH, jsd=True, **options)  # type: ignore[arg-type]


def as_it_comes(pair: Pair, _: Change, dtype: str | None = None) -> Trace:
    return replayed(pair, dtype=dtype)


def one_rollout_at_a_time(pair: Pair, _: Change, dtype: str | None = None) -> Trace:
    return replayed(pair, batch_tokens=1, dtype=dtype)


def batches_without_sharing(pair: Pair, change: Change) -> Trace:
    change.setattr(batching, "SHARING_PAYS", 2.0)
    return replayed(pair)


def in_pieces(pair: Pair, change: Change) -> Trace:
    change.setattr(loading, "PREFILL_TOKENS", 16)
    return replayed(pair)


def as_a_long_job(pair: Pair, change: Change, dtype: str | None = None) -> Trace:
    """Compiled, and with bf16 weights the native product: what jobs of many states use."""
    change.setitem(compiled.PAYS_FROM, "cpu", 0)
    change.setattr(native, "PAYS_FROM", 0)
    whole: list[int] = []
    states: list[int] = []
    run = compiled.CompiledReduction.__call__

    def counted(self: compiled.CompiledReduction, student: Tensor, *rest: Any) -> Any:
        states.append(len(student))
        whole.append(len(student) if len(student) == self.rows and self.is_compiled else 0)
        return run(self, student, *rest)

    change.setattr(compiled.CompiledReduction, "__call__", counted)
    trace = replayed(pair, chunk=32, dtype=dtype)
    assert sum(whole) > sum(states) / 2
    return trace


def one_model_after_the_other(pair: Pair, _: Change) -> Trace:
    return replayed(pair, sequential=True)


def several_teachers(pair: Pair, _: Change) -> Trace:
    """The student's states are stored; as its own teacher it is at no distance."""
    teachers = {"itself": pair.student, "other": pair.teacher}
    traces = opd_probe.replay_teachers(pair.student, teachers, pair.rollouts, k=DEPTH, jsd=True)
    for name in (*DIVERGENCES, "sampled_reward", "entropy_gap"):
        assert not opd_probe.state_metrics(traces["itself"], K)[name].any(), name
    return traces["other"]


def served_teacher(pair: Pair, _: Change) -> Trace:
    model = AutoModelForCausalLM.from_pretrained(pair.teacher, dtype=torch.float32)
    with serving(SGLangAnswers(model)) as server:
        return opd_probe.replay(pair.student, server.url, pair.rollouts, k=DEPTH)


PATHS: dict[str, Callable[[Pair, Change], Trace]] = {
    "prompts shared, in batches": as_it_comes,
    "in batches": batches_without_sharing,
    "one rollout at a time": one_rollout_at_a_time,
    "in pieces of 16 tokens": in_pieces,
    "long job: compiled": as_a_long_job,
    "one model after the other, states on disk": one_model_after_the_other,
    "several teachers, states stored": several_teachers,
    "served teacher": served_teacher,
}


LAYERS_ALONE = (
    "in batches",
    "in pieces of 16 tokens",
    "one model after the other, states on disk",
    "several teachers, states stored",
)
"""Paths that are others in the layers alone, and not in what comes after these: there the two pairs are the same."""


@pytest.mark.parametrize("path", PATHS)
def test_float32_weights(pair: Pair, path: str, monkeypatch: Change) -> None:
    if pair.name == "sharpened" and path in LAYERS_ALONE:
        pytest.skip("the layers are those of the pair as it is")
    held(pair, PATHS[path](pair, monkeypatch), "float32", path)


@pytest.mark.parametrize(
    ("weights", "path", "run"),
    [
        ("bfloat16", "prompts shared, in batches", as_it_comes),
        ("bfloat16", "one rollout at a time", one_rollout_at_a_time),
        ("bfloat16", "long job: compiled, native product", as_a_long_job),
        ("float16", "prompts shared, in batches", as_it_comes),
        ("float64", "prompts shared, in batches", as_it_comes),
    ],
)
def test_other_weights(pair: Pair, weights: str, path: str, run, monkeypatch: Change) -> None:  # type: ignore[no-untyped-def]
    if pair.name == "sharpened" and weights in ("float16", "float64"):
        pytest.skip("measured of the pair as it is")
    held(pair, run(pair, monkeypatch, weights), weights, path)


def held(pair: Pair, trace: Trace, weights: str, path: str) -> None:
    """Record how far a trace is off, and hold it to what transformers' own pass in the same weights is off."""
    found, right = values_of(trace), pair.truth
    # float64 weights end in float32 logits, and float16 has three bits more than bfloat16, in which it is slow by hand.
    usual = pair.by_hand({"float64": torch.float32, "float32": torch.float32}.get(weights, torch.bfloat16))
    measured, noise = errors(found, right), errors(usual, right)
    record(pair, "model", weights, path, measured, other_sets(found, right))
    # A server takes its log-softmax in float32, over the whole vocabulary.
    told = 1e-5 if path == "served teacher" else 1e-7
    assert other_sets(found, right) <= 1.5 * other_sets(usual, right) + 0.01
    for name, error in measured.items():
        if is_count(name):
            assert error.worst <= 1.5 * noise[name].worst + 0.01, (name, error, noise[name])
            continue
        assert error.typical <= 2.5 * noise[name].typical + told, (name, error, noise[name])
        assert error.worst <= 5 * noise[name].worst + 10 * told, (name, error, noise[name])
    for name in DIVERGENCES:
        if name in measured:
            assert (found[name] >= 0).all(), name


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_by_hand(pair: Pair, weights: str) -> None:
    """What the others are held to, in the table beside them; and what bf16 weights alone do, without bf16 sums."""
    right = pair.truth
    usual = pair.by_hand(getattr(torch, weights))
    measured = errors(usual, right)
    record(pair, "model", weights, "by hand: transformers, float64 statistics", measured, other_sets(usual, right))
    assert measured["reverse_kl"].off != 0
    if weights == "bfloat16":
        alone = pair.rounded_truth
        moved = errors(alone, right)
        record(pair, "model", weights, "exact sums, weights rounded", moved, other_sets(alone, right))
        assert moved["student_entropy"].typical <= measured["student_entropy"].typical


def test_a_trace_on_disk_is_the_trace(ordinary: Pair, tmp_path: Path) -> None:
    """The command line's replay gives what the function gives."""
    kept = opd_probe.replay(
        ordinary.student, ordinary.teacher, ordinary.rollouts[:4], k=DEPTH, jsd=True, out=tmp_path / "trace.parquet"
    )
    memory = opd_probe.replay(ordinary.student, ordinary.teacher, ordinary.rollouts[:4], k=DEPTH, jsd=True)
    for name in memory.columns:
        np.testing.assert_array_equal(kept.column(name), memory.column(name), err_msg=name)
