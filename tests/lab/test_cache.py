"""Recipes name their artefacts; the cache makes each once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd_probe.lab import cache, recipes
from opd_probe.lab.corpus import Component, DialectRecipe
from opd_probe.lab.evaluate import MeasureRecipe
from opd_probe.lab.losses import LossRecipe
from opd_probe.lab.models import ModelRecipe
from opd_probe.lab.pretrain import PretrainRecipe, Report
from opd_probe.lab.recipes import MODELS, RUNS, TrainedModel, digest, lineage
from opd_probe.lab.task import PromptRecipe

CORPUS = (Component("A", 1.0, DialectRecipe("tiny")),)
TINY = ModelRecipe(hidden_size=32, layers=1, heads=1, intermediate_size=48)


def silent(_label: str) -> Report:
    def report(*_: object) -> None: ...

    return report


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A parent and a child of a few training steps; the list collects the trainings that were run."""
    parent = TrainedModel("parent", PretrainRecipe("parent", CORPUS, 3, 1e-3, batch_size=4), shape=TINY)
    child = TrainedModel("child", PretrainRecipe("child", CORPUS, 2, 1e-3, batch_size=4), "parent")
    monkeypatch.setitem(MODELS, "parent", parent)
    monkeypatch.setitem(MODELS, "child", child)
    runs: list[str] = []
    real = cache.pretrain

    def counted(model: object, recipe: PretrainRecipe, *rest: object) -> None:
        runs.append(recipe.label)
        real(model, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "pretrain", counted)
    return runs


def test_a_model_is_trained_once_with_its_lineage(family: list[str], tmp_path: Path) -> None:
    first = cache.trained_model(tmp_path, "child", 0, silent)
    assert family == ["parent", "child"]
    second = cache.trained_model(tmp_path, "child", 0, silent)
    assert family == ["parent", "child"]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    cache.trained_model(tmp_path, "child", 1, silent)
    assert family == ["parent", "child"] * 2


def test_an_interrupted_training_leaves_nothing_that_looks_finished(
    family: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.trained_model(tmp_path, "parent", 0, silent)
    cache.trained_model(tmp_path, "parent", 0, silent)
    assert family == ["parent", "parent"]


def test_json_results_are_made_once_per_tag(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"value": len(made)}

    assert cache.cached_json(tmp_path, "compatible", 0, make, tag="a") == {"value": 1}
    assert cache.cached_json(tmp_path, "compatible", 0, make, tag="a") == {"value": 1}
    assert cache.cached_json(tmp_path, "compatible", 0, make, tag="b") == {"value": 2}


def test_digest_follows_whatever_the_artefact_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*MODELS, *RUNS]
    before = {name: digest(name, 0) for name in names}
    assert len(set(before.values())) == len(names)
    assert all(digest(name, 0) == before[name] != digest(name, 1) for name in names)
    teacher = MODELS["incompatible-teacher"]
    longer = replace(teacher, training=replace(teacher.training, steps=teacher.training.steps + 1))
    monkeypatch.setitem(recipes.MODELS, "incompatible-teacher", longer)
    changed = {name for name in names if digest(name, 0) != before[name]}
    assert changed == {"incompatible-teacher", "incompatible", "failing", "cold-student", "cold-start"}


def test_digest_of_what_is_published_never_changes() -> None:
    """Options that were added since do not enter the digest while they hold their defaults."""
    assert {name: digest(name, 0) for name in ("base", "student", "compatible", "incompatible")} == {
        "base": "43aec4aa720d",
        "student": "63c0187ebd46",
        "compatible": "e72a7c45e449",
        "incompatible": "f49ba91d10a2",
    }


def test_digest_sees_an_added_option_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RUNS["good"]
    before = digest("good", 0)
    for changed in (
        replace(run, distillation=replace(run.distillation, prompts=PromptRecipe("answer"))),
        replace(run, distillation=replace(run.distillation, loss=LossRecipe(weights="none"))),
        replace(run, measure=MeasureRecipe(ends=8)),
    ):
        monkeypatch.setitem(recipes.RUNS, "good", changed)
        assert digest("good", 0) != before


def test_lineage_is_oldest_first() -> None:
    assert [model.name for model in lineage("student")] == ["base", "student"]


def test_every_recipe_refers_to_recipes_that_exist() -> None:
    for model in MODELS.values():
        assert model.start is None or model.start in MODELS
    for run in RUNS.values():
        assert run.student in MODELS or run.student in RUNS
        assert {run.teacher, *(run.measure.pair or ())} <= MODELS.keys()
        assert max(run.distillation.checkpoints) == run.distillation.steps
