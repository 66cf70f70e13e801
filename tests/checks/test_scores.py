"""Two paths to one log-probability that do not agree, and noise as large as the signal."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.checks import CheckOptions, Pair, examine, gather
from opd_probe.checks.evidence import Columns, Skip
from opd_probe.checks.scores import compare_paths
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic, edit_weights, sampled


def noisy(rollout: Rollout, size: float) -> Rollout:
    generator = np.random.default_rng(len(rollout.id))
    values = np.asarray(rollout.extra["teacher_logprobs"]) + generator.normal(0.0, size, len(rollout.response_ids))
    return replace(rollout, extra={**rollout.extra, "teacher_logprobs": values.tolist()})


@pytest.mark.parametrize(("size", "status"), [(0.005, "ok"), (0.3, "fail")])
def test_noisy_stored_scores(clinic: Clinic, size: float, status: str) -> None:
    line = clinic.findings(clinic.altered(lambda rollout: noisy(rollout, size)))["self_score_stored"]
    assert line.status == status
    assert line.values["p50"] == pytest.approx(0.6745 * size, rel=0.2)  # the median of |N(0, 1)|
    assert line.values["p99"] == pytest.approx(2.576 * size, rel=0.2)
    assert "stored against replayed" in line.figure


def test_rounding_stays_far_below_the_limits(clinic: Clinic) -> None:
    """What the table says of bf16: both models in it, against scores in float32 of the teacher and of the sampler."""
    found = clinic.findings(student=clinic.root / "student", teacher=clinic.root / "teacher", dtype="bfloat16")
    stored, sampler = found["self_score_stored"], found["sampler_logprobs"]
    assert (stored.status, sampler.status) == ("ok", "ok")
    assert 0 < stored.values["p50"] < 0.005
    assert 0 < stored.values["p99"] < 0.15
    assert 0 < sampler.values["mean_absolute_difference"] < 0.01


def test_a_few_scores_that_are_off(clinic: Clinic) -> None:
    def off(rollout: Rollout) -> Rollout:
        first, *others = rollout.extra["teacher_logprobs"]
        return replace(rollout, extra={**rollout.extra, "teacher_logprobs": [first - 2.0, *others]})

    line = clinic.findings(clinic.altered(off))["self_score_stored"]
    assert line.status == "warn"
    assert (line.values["p50"] < 1e-3, line.values["p99"]) == (True, pytest.approx(2.0, abs=1e-3))


def test_scores_of_another_teacher(clinic: Clinic) -> None:
    assert clinic.findings(teacher=clinic.models["stranger"])["self_score_stored"].status == "fail"


def test_scores_of_masked_tokens_are_not_compared(clinic: Clinic) -> None:
    def tooled(rollout: Rollout) -> Rollout:
        values = [-9.0, -9.0, *list(rollout.extra["teacher_logprobs"])[2:]]
        mask = [0, 0] + [1] * (len(rollout.response_ids) - 2)
        return replace(rollout, response_mask=mask, extra={**rollout.extra, "teacher_logprobs": values})

    line = clinic.findings(clinic.altered(tooled))["self_score_stored"]
    assert line.status == "ok"
    assert line.values["n_tokens"] == sum(len(r.response_ids) - 2 for r in clinic.rollouts)


def test_a_batch_that_changes_the_scores(clinic: Clinic) -> None:
    """No model of ours does so, so that the fault is planted between both scorings."""
    models = clinic.models
    evidence = gather(Pair(lambda: models["student"], lambda: models["teacher"]), clinic.rollouts, CheckOptions(k=32))
    generator = np.random.default_rng(0)
    other = {
        index: {
            **columns,
            "teacher_logprob": columns["teacher_logprob"] + generator.normal(0, 1.0, len(columns["position"])),
        }
        for index, columns in evidence.alone.items()
    }
    found = {finding.check: finding for finding in examine(replace(evidence, alone=other))}
    assert found["self_score"].status == "fail"
    assert found["scoring_noise"].status == "fail"
    assert found["self_score_stored"].status == "ok"


def test_the_paths_are_compared_token_by_token() -> None:
    first = {0: np.array([-1.0, -2.0, np.nan]), 1: np.array([-3.0])}
    second = {0: np.array([-1.1, -2.0, -5.0]), 2: np.array([0.0])}
    line = compare_paths(first, second, ("one", "other"))
    assert line.values["n_tokens"] == 2
    assert (line.values["p50"], line.values["p99"]) == (pytest.approx(0.05), pytest.approx(0.099))
    with pytest.raises(Skip, match="no token in common"):
        compare_paths({1: first[1]}, second, ("one", "other"))


def test_a_signal_below_the_noise(clinic: Clinic, tmp_path: Path) -> None:
    """A teacher that is the student with its neurons in another order: what tells them apart is rounding."""

    def reorder(model: Any) -> None:
        for layer in model.model.layers:
            order = torch.randperm(layer.mlp.gate_proj.weight.shape[0], generator=torch.Generator().manual_seed(0))
            for inner in (layer.mlp.gate_proj, layer.mlp.up_proj):
                inner.weight.copy_(inner.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])

    # Responses of one prompt share its computation in a batch, so that their numbers differ from those of one alone.
    rollouts = sampled(clinic.models["student"], count=4, num_rollouts=4, max_new_tokens=40)
    teacher = edit_weights(clinic.copy("student", tmp_path), reorder)
    line = clinic.findings(rollouts, teacher=teacher)["scoring_noise"]
    assert line.status in ("warn", "fail")
    assert line.values["noise"] > 0.1 * line.values["signal"] > 0
    assert "against a signal of" in line.figure


def test_a_teacher_that_is_the_student(clinic: Clinic) -> None:
    line = clinic.findings(teacher=clinic.models["student"])["scoring_noise"]
    assert line.status == "warn"
    assert line.values["signal"] == 0.0
    assert "both models say the same everywhere" in line.figure


def test_a_sampler_at_another_temperature(clinic: Clinic) -> None:
    cool = sampled(clinic.models["student"], max_new_tokens=40, temperature=0.7)
    line = clinic.findings(cool)["sampler_logprobs"]
    trace = opd_probe.replay(clinic.models["student"], clinic.models["teacher"], cool, k=1)
    change = trace.column("sampler_logprob").astype(np.float64) - trace.column("student_logprob")
    assert line.status == "warn"
    assert line.values["mean_absolute_difference"] == pytest.approx(np.abs(change).mean(), rel=1e-4)
    assert line.values["mean_difference"] > 0.05
    assert "--temperature" in line.advice
    assert clinic.findings(cool, temperature=0.7)["sampler_logprobs"].status == "ok"


def test_a_sampled_token_that_the_teacher_does_not_have(clinic: Clinic, tmp_path: Path) -> None:
    """A student that has sampled one of its padding rows, which the narrower teacher cannot score."""

    def pad(model: Any) -> None:
        model.resize_token_embeddings(512, mean_resizing=False)

    student = edit_weights(clinic.copy("student", tmp_path), pad)
    first, *others = clinic.rollouts
    odd = replace(first, response_ids=(*first.response_ids, 505), logprobs=None, extra={})
    line = clinic.findings([odd, *others], student=student)["unknown_scores"]
    assert line.status == "warn"
    assert line.values["n_unknown"] == 1
    assert line.values["n_states"] == sum(len(rollout.response_ids) for rollout in clinic.rollouts) + 1
    assert line.figure.startswith(f"1 of {line.values['n_states']} sampled tokens")


def test_no_sampler_logprobs(clinic: Clinic) -> None:
    line = clinic.findings(clinic.altered(lambda rollout: replace(rollout, logprobs=None)))["sampler_logprobs"]
    assert line.status == "skip"


def test_certain_tokens_do_not_make_rounding_a_fault(clinic: Clinic) -> None:
    """Of most tokens a healthy pair is certain, so that their r is below the rounding of the few others."""
    models = clinic.models
    evidence = gather(Pair(lambda: models["student"], lambda: models["teacher"]), clinic.rollouts, CheckOptions(k=32))

    def certain(columns: Columns, noise: float) -> Columns:
        shape = np.arange(len(columns["position"])) % 5 > 0
        own = np.where(shape, -1e-5, columns["student_logprob"])
        given = np.where(shape, -2e-5, columns["student_logprob"] - 0.3 + noise)
        return {**columns, "student_logprob": own, "teacher_logprob": given}

    states = {index: certain(columns, 0.0) for index, columns in evidence.states.items()}
    again = {index: certain(columns, 0.01) for index, columns in evidence.states.items()}
    found = {finding.check: finding for finding in examine(replace(evidence, states=states, alone=again))}
    assert found["scoring_noise"].status == "ok"
    assert found["scoring_noise"].values["noise"] > 10 * 1e-5  # of the median r


def test_scores_of_minus_infinity_are_told_with_their_share(clinic: Clinic) -> None:
    """Half of the teacher's, all of them, a few; and the sampler's, which sampled these very tokens."""

    def holed(rollout: Rollout, every: int) -> Rollout:
        given = rollout.extra["teacher_logprobs"]
        values = [-math.inf if n % every == 0 else value for n, value in enumerate(given)]
        return replace(rollout, extra={"teacher_logprobs": values})

    n = sum(len(rollout.response_ids) for rollout in clinic.rollouts)
    for every, status in ((2, "fail"), (1, "fail"), (10**6, "fail")):
        line = clinic.findings([holed(rollout, every) for rollout in clinic.rollouts])["self_score_stored"]
        infinite = sum(-(-len(rollout.response_ids) // every) for rollout in clinic.rollouts)
        assert line.status == status
        assert line.values["share_infinite"] == pytest.approx(infinite / n)
        assert f"stored is −inf at {infinite:,} more ({infinite / n:.0%})" in line.figure
    lost = [replace(r, logprobs=[-math.inf, *list(r.logprobs or ())[1:]]) for r in clinic.rollouts]
    line = clinic.findings(lost)["sampler_logprobs"]
    assert (line.status, line.values["n_infinite"]) == ("warn", len(lost))
