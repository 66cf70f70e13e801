"""The lab's recipes in a size that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from opd_probe.lab import recipes
from opd_probe.lab.coldstart import ColdStartRecipe
from opd_probe.lab.experiments import EXPERIMENTS, jobs_of
from opd_probe.lab.models import ModelRecipe
from opd_probe.lab.runs import do
from opd_probe.lab.work import closure

TINY = ModelRecipe(hidden_size=32, layers=1, heads=1, intermediate_size=48)
FINISHED = ("reverse_distillation", "prompt_content", "continuation", "reward")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Make every model and run of the lab tiny."""
    patch.setattr("opd_probe.lab.runs._ROLLOUTS", 48)
    for name, model in recipes.MODELS.items():
        training = replace(model.training, steps=2, batch_size=4)
        if isinstance(training, ColdStartRecipe):
            training = replace(training, rollouts=8)
        patch.setitem(recipes.MODELS, name, replace(model, training=training, shape=TINY))
    for name, run in recipes.RUNS.items():
        how = replace(run.distillation, steps=2, checkpoints=(1, 2), prompts_per_step=4)
        patch.setitem(
            recipes.RUNS, name, replace(run, distillation=how, measure=replace(run.measure, ends=48, between=40))
        )


@dataclass(frozen=True)
class TinyLab:
    """A cache in which the experiments named in :data:`FINISHED` are done for one seed."""

    cache: Path
    seed: int


@pytest.fixture(scope="session")
def finished_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of :func:`tiny_lab`, made once."""
    cache, threads = tmp_path_factory.mktemp("lab-cache"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        for job in closure(job for name in FINISHED for job in jobs_of(EXPERIMENTS[name], [0])):
            do(cache, job)
    torch.set_num_threads(threads)
    return cache


@pytest.fixture(scope="module")
def tiny_lab(finished_cache: Path) -> Iterator[TinyLab]:
    """The cache, and the recipes in tiny as long as the module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield TinyLab(finished_cache, 0)
