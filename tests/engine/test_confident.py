"""Models that are sure of nearly every token: what a replay says does not depend on the size of the job."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.engine.replay import Replay
from opd_probe.engine.scoring import Columns
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.types import Rollout
from tests.tiny import tiny_model

VOCABULARY = 3_000
CHUNK = 6
"""The shape of another test of compiled passes, so that nothing is compiled for these."""


@pytest.fixture(scope="module")
def pair() -> tuple[LoadedModel, LoadedModel]:
    student = tiny_model(VOCABULARY, seed=4, tied=False, spread=60.0)
    teacher = copy.deepcopy(student)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = teacher.lm_head.weight
        weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=noise)
    return load_model(student), load_model(teacher)


@pytest.fixture(scope="module")
def rollouts(pair: tuple[LoadedModel, LoadedModel]) -> list[Rollout]:
    """What the student says when it takes its most probable token."""
    generator = np.random.default_rng(0)
    prompts = generator.integers(3, VOCABULARY, (6, 4))
    model: Any = pair[0].model
    with torch.no_grad():
        ids = model.generate(torch.from_numpy(prompts), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return [
        Rollout(id=f"r{index}", prompt_ids=row[:4], response_ids=row[4:], prompt_id=f"p{index}")
        for index, row in enumerate(ids.tolist())
    ]


def columns(
    student: LoadedModel | StoredModel, teacher: LoadedModel, rollouts: list[Rollout], compiled: bool
) -> Columns:
    settings = ReplaySettings(16, jsd=True, chunk=CHUNK, compiled=compiled)
    found = dict(Replay(student, teacher, rollouts, np.arange(VOCABULARY), settings).states())
    return {name: np.concatenate([found[index][name] for index in sorted(found)]) for name in found[0]}


def test_every_way_says_the_same(pair: tuple[LoadedModel, LoadedModel], rollouts: list[Rollout]) -> None:
    student, teacher = pair
    stored = StoredModel(student, rollouts)
    stored.fill(8_192)
    short = columns(student, teacher, rollouts, False)
    rest = -np.expm1(short["student_logprob"].astype(np.float64))
    assert (rest < 1e-4).mean() > 0.2, "the models are not as sure as this test wants them"
    negative = short["teacher_logprob"] < short["student_logprob"]
    assert 0 < negative.mean() < 1
    for other in (columns(student, teacher, rollouts, True), columns(stored, teacher, rollouts, False)):
        for name, values in short.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-6, atol=1e-20, err_msg=name)
        np.testing.assert_array_equal(other["teacher_logprob"] < other["student_logprob"], negative)
    assert (short["reverse_kl"][rest > 1e-30] > 0).all()  # below that float32 columns end
    assert not np.signbit(short["reverse_kl"]).any()


def test_equal_models_are_exactly_0_apart(pair: tuple[LoadedModel, LoadedModel], rollouts: list[Rollout]) -> None:
    for compiled in (False, True):
        found = columns(pair[0], pair[0], rollouts, compiled)
        for name in ("reverse_kl", "forward_kl", "jsd"):
            assert not found[name].any(), name
        np.testing.assert_array_equal(found["student_logprob"], found["teacher_logprob"])
