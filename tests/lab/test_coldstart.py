"""Supervised training on a teacher's rollouts: what is left out, and that the rest is learned."""

from __future__ import annotations

import copy

import torch

from opd_probe.lab.coldstart import ColdStartRecipe, cold_start, usable
from opd_probe.lab.corpus import Component, DialectRecipe
from opd_probe.lab.distill import draw
from opd_probe.lab.models import EOS_ID, PAD_ID, LabModel, ModelRecipe, build_model
from opd_probe.lab.pretrain import PretrainRecipe, pretrain, states_of
from opd_probe.lab.sampling import Sample
from opd_probe.lab.task import sample_problems, seeded

TINY = ModelRecipe(hidden_size=32, layers=1, heads=1, intermediate_size=48)


def sample(*responses: list[int]) -> Sample:
    longest = max(map(len, responses))
    ids = torch.tensor([[*row, *[PAD_ID] * (longest - len(row))] for row in responses])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in responses])
    return Sample(torch.zeros(len(responses), 2, dtype=torch.long), ids, mask)


def test_cut_off_and_repetitive_responses_are_left_out() -> None:
    run = [50, 51, 52, 53, 54]
    kept = usable(
        sample(
            [*range(60, 72), EOS_ID], [*range(60, 73)], [*run, 60, *run, EOS_ID], [*run, *run[:4], EOS_ID], [60, EOS_ID]
        )
    )
    assert kept.tolist() == [True, False, False, True, True]


def test_cold_start_raises_the_likelihood_of_the_teachers_responses() -> None:
    corpus = (Component("A", 1.0, DialectRecipe("t", zipf=2.0)),)
    teacher = build_model(TINY, seed=1)
    pretrain(teacher, PretrainRecipe("teacher", corpus, steps=60, learning_rate=1e-2, batch_size=16), seed=0)
    student = build_model(TINY, seed=0)
    written, _ = draw(teacher, sample_problems(seeded(9, "test"), 32), 32, seed=9)

    @torch.no_grad()
    def surprise(model: LabModel) -> float:
        log_p = states_of(model, written.input_ids, written.first_state).log_softmax(-1)
        return -float(log_p.gather(-1, written.response_ids.unsqueeze(-1)).squeeze(-1)[written.mask].mean())

    before = copy.deepcopy(student)
    recipe = ColdStartRecipe("test", "teacher", rollouts=64, steps=40, learning_rate=1e-2, batch_size=16, warmup=2)
    cold_start(student, teacher, recipe, seed=0)
    assert surprise(student) < 0.7 * surprise(before)
