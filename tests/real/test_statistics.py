"""The statistics of every path against float64 on the same logits, and on the same hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import opd_probe
from benchmarks.precision import is_count
from opd_probe.engine.scoring import StateScorer, VocabularyMap
from opd_probe.metrics import METRICS
from opd_probe.stats.compiled import CompiledReduction
from opd_probe.stats.projection import OutputProjection
from opd_probe.stats.scratch import Scratch
from opd_probe.stats.single import single_statistics
from opd_probe.trace import Trace, rollout_table
from tests.real.measured import needs_the_model, record
from tests.real.pairs import DEPTH, SMALLEST, K, Pair, errors, other_sets, values_of
from tests.real.truth import Floats, Values, logits_of, measure, number_of

pytestmark = needs_the_model

CHUNK = 64
CPU = torch.device("cpu")
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Work:
    """Hidden states of a pair's models by transformers, and output layers of ours."""

    pair: Pair
    hidden: list[Tensor]
    weights: list[Tensor]
    layers: list[OutputProjection]

    @torch.inference_mode()
    def logits(self, side: int) -> Iterator[Tensor]:
        """The float32 logits that a scorer makes of the hidden states, chunk by chunk."""
        for rows in self.hidden[side].split(CHUNK):
            yield self.layers[side].logits(rows, Scratch(), "logits")[0]

    def truth(self, student: Iterator[Tensor], teacher: Iterator[Tensor]) -> Values:
        """Every metric from logits."""
        return measure(student, teacher, self.pair.tokens, self.pair.correct, K, DEPTH)

    @torch.inference_mode()
    def scored(self, reduction: CompiledReduction | None) -> Trace:
        """What a replay makes of the hidden states."""
        width = self.layers[0].width
        vocabulary = VocabularyMap(np.arange(width), width, CPU)
        scorer = StateScorer(*self.layers, vocabulary, DEPTH, jsd=True, chunk=CHUNK, reduction=reduction)
        columns = scorer.score(*self.hidden, torch.from_numpy(self.pair.tokens))
        counts = [len(rollout.response_ids) for rollout in self.pair.rollouts]
        rows = [
            {"rollout_id": r.id, "prompt_id": r.prompt_id, "n_states": n, "response_length": n, "score": r.score}
            for r, n in zip(self.pair.rollouts, counts, strict=True)
        ]
        columns["position"] = np.concatenate([np.arange(n) for n in counts]).astype(np.int32)
        return Trace(rollout_table(rows), {"K": DEPTH, "vocabulary": {"size": width}}, arrays=columns)


def work_of(pair: Pair, weights: str, *, native: bool = False) -> Work:
    hidden, matrices = zip(*(pair.hidden(side, TYPES[weights]) for side in ("student", "teacher")), strict=True)
    ids = torch.arange(len(matrices[0]))
    layers = [OutputProjection(matrix, None, ids, native=native) for matrix in matrices]
    return Work(pair, list(hidden), list(matrices), layers)


@pytest.fixture(scope="module")
def same_logits(pair: Pair) -> tuple[Work, Values]:
    """float32 logits, and what is right of them."""
    work = work_of(pair, "float32")
    return work, work.truth(work.logits(0), work.logits(1))


def of_eager(work: Work) -> Trace:
    return work.scored(None)


def of_compiled(work: Work) -> Trace:
    reduction = CompiledReduction(CHUNK, CPU)
    trace = work.scored(reduction)
    assert reduction.is_compiled
    return trace


def of_trace_logits(work: Work) -> Trace:
    student, teacher = (torch.cat([rows.clone() for rows in work.logits(side)]) for side in (0, 1))
    flat = opd_probe.trace_logits(student, teacher, work.pair.tokens, DEPTH, jsd=True)
    rows = flat.rollouts.to_pylist()
    return Trace(rollout_table(rows), flat.provenance, arrays={name: flat.column(name) for name in flat.columns})


@pytest.mark.parametrize(
    ("path", "made"),
    [("eager", of_eager), ("compiled", of_compiled), ("`trace_logits`", of_trace_logits)],
    ids=["eager", "compiled", "trace_logits"],
)
def test_from_the_same_logits(same_logits: tuple[Work, Values], path: str, made) -> None:  # type: ignore[no-untyped-def]
    """1e-5 of every value, and of divergences 1e-5 of their size down to 1e-7; sets and verdicts exactly."""
    work, right = same_logits
    found = values_of(made(work))
    if path == "`trace_logits`":
        right = {**right, "sign_noise": found["sign_noise"]}  # it knows no verdict
    assert np.array_equal(found["student_set"], right["student_set"])
    assert np.array_equal(found["teacher_set"], right["teacher_set"])
    record(work.pair, "logits", "float32", path, errors(found, right), other_sets(found, right))
    for name in METRICS:
        close(found[name], right[name], 1e-5, name, right)


def close(found: Floats, right: Floats, tolerance: float, name: str, of: Values) -> None:
    """Hold one metric to the right values of all states."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(right), err_msg=name)
    if name in DIVERGENCES:
        assert (found >= 0).all(), name
        allowed = tolerance * np.maximum(right, SMALLEST)
        assert (np.abs(found - right) <= allowed).all(), (name, np.abs(found / right - 1).max())
    elif is_count(name):
        # A verdict on the reward may turn where both log-probabilities are equal as the float32 that a trace stores.
        size = np.maximum(np.abs(of["student_logprob"]), np.abs(of["teacher_logprob"]))
        sure = ~np.isnan(right) & (np.abs(of["sampled_reward"]) > 2**-22 * size)
        assert np.array_equal(found[sure], right[sure]), name
    else:
        np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_reward_is_0_only_where_float32_cannot_tell(same_logits: tuple[Work, Values]) -> None:
    work, right = same_logits
    found = values_of(of_eager(work))["sampled_reward"]
    stored = [right[f"{side}_logprob"].astype(np.float32) for side in ("teacher", "student")]
    expected = (stored[0] == stored[1]).mean()
    assert (found == 0).mean() == pytest.approx(expected, abs=2 / len(found))


@torch.inference_mode()
def test_one_model_alone(same_logits: tuple[Work, Values]) -> None:
    """Each side by itself, as beside a teacher that is served."""
    work, right = same_logits
    tokens = torch.from_numpy(work.pair.tokens)
    found = {name: np.full(len(tokens), np.nan) for name in METRICS}
    for number, side in enumerate(("student", "teacher")):
        parts = []
        for rows, at in zip(work.logits(number), tokens.split(CHUNK), strict=True):
            parts.append(single_statistics(rows, at, at[:, None], DEPTH))
        top = torch.cat([part.top_ids for part in parts])[:, :K]
        found[f"{side}_set"] = np.array([number_of(row) for row in top.tolist()])
        assert np.array_equal(found[f"{side}_set"], right[f"{side}_set"])
        found[f"{side}_entropy"] = torch.cat([part.entropy for part in parts]).double().numpy()
        found[f"{side}_topk_mass"] = (
            torch.cat([part.top_logprobs for part in parts])[:, :K].double().exp().sum(-1).numpy()
        )
        logprob = torch.cat([part.logprob for part in parts]).double().numpy()
        np.testing.assert_array_equal(logprob, torch.cat([part.logprobs_at for part in parts])[:, 0].double().numpy())
        found[f"{side}_token_probability"] = np.exp(logprob)
        # The smallest log-probabilities, beside 1, are what a sum in float32 loses.
        np.testing.assert_allclose(logprob, right[f"{side}_logprob"], rtol=1e-5, atol=1e-9)
        if side == "teacher":
            found["teacher_nll"] = -logprob
    measured = errors(found, right)
    assert len(measured) == 7
    record(work.pair, "logits", "float32", "one model alone", measured, 0.0)
    for name in measured:
        close(found[name], right[name], 1e-5, name, right)


@pytest.mark.parametrize(
    ("weights", "path", "made"),
    [
        ("float32", "eager", of_eager),
        ("bfloat16", "eager", of_eager),
        ("bfloat16", "native product, compiled", of_compiled),
    ],
)
def test_from_the_same_hidden_states(pair: Pair, weights: str, path: str, made) -> None:  # type: ignore[no-untyped-def]
    """With the product of the output layer: what float32 sums over its depth can tell of logits of that size."""
    native = path.startswith("native")
    work = work_of(pair, weights, native=native)
    if native and not all(layer.is_native for layer in work.layers):
        pytest.skip("this processor has no bf16 units, or nothing builds the product")
    right = work.truth(*(logits_of(work.hidden[side], work.weights[side]) for side in (0, 1)))
    found = values_of(made(work))
    measured = errors(found, right)
    record(pair, "hidden", weights, path, measured, other_sets(found, right))
    assert other_sets(found, right) <= 0.01
    depth = work.hidden[0].shape[1]
    unit = 2**-24 * depth**0.5 * max(float(rows.abs().max()) for side in (0, 1) for rows in work.logits(side))
    for name, error in measured.items():
        assert error.worst <= (0.01 if is_count(name) else 4 * unit), (name, error)
        assert error.typical <= unit / 4, (name, error)
    for name in DIVERGENCES:
        assert (found[name] >= 0).all(), name
