"""Named, frozen recipes: every model and run of the lab, as data.

A recipe and a seed decide an artefact to the last draw; :func:`digest` names it in the cache. To add an
experiment, add recipes: the code that trains and measures stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from opd_probe.lab.distill import DistillRecipe
from opd_probe.lab.models import ModelRecipe
from opd_probe.lab.pretrain import PretrainRecipe
from opd_probe.lab.task import Component, DialectRecipe

__all__ = ["MODELS", "RUNS", "VERSION", "RunRecipe", "TrainedModel", "digest", "lineage"]

VERSION: Final = 1
"""Raised when a change of the code changes what a recipe produces: cached artefacts are then made anew."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model and how it came to be.

    Attributes:
        start: the name of the model that training continues from; None: random weights of ``shape``.
    """

    name: str
    training: PretrainRecipe
    start: str | None = None
    shape: ModelRecipe = field(default_factory=ModelRecipe)


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """A distillation run: names of the student before it and of the teacher, and how it is done."""

    name: str
    student: str
    teacher: str
    distillation: DistillRecipe


def _model(name: str, start: str | None, steps: int, rate: float, *corpus: Component) -> TrainedModel:
    return TrainedModel(name, PretrainRecipe(name, corpus, steps, rate), start)


_MISCONCEPTIONS: Final = 4
_BASE: Final = DialectRecipe("base", zipf=1.2, noise=0.5)
_STUDENT: Final = DialectRecipe("student", zipf=1.2, noise=0.5)
_COMPATIBLE: Final = DialectRecipe("compatible", zipf=1.5, noise=1.0)
_INCOMPATIBLE: Final = DialectRecipe("incompatible", zipf=1.2, noise=1.6, cues=12)

MODELS: Final = {
    model.name: model
    for model in (
        # The lineage's common ancestor: mostly pattern A, some B, and wrong about 4 of 10 operations in both.
        _model(
            "base", None, 700, 4e-3,
            Component("A", 0.7, _BASE, _MISCONCEPTIONS),
            Component("B", 0.3, _BASE, _MISCONCEPTIONS),
        ),
        # The student keeps the misconceptions and settles on pattern A.
        _model("student", "base", 100, 1e-3, Component("A", 1.0, _STUDENT, _MISCONCEPTIONS)),
        # Same pattern, right arithmetic, a sharper wording.
        _model("compatible-teacher", "base", 300, 2e-3, Component("A", 1.0, _COMPATIBLE)),
        # Right arithmetic in the other pattern only, and a wording that follows a cue the student ignores. What was
        # begun in pattern A it continues there, with the misconceptions; it hardly ever begins so itself.
        _model(
            "incompatible-teacher", "base", 700, 4e-3,
            Component("B", 0.6, replace(_INCOMPATIBLE, own_slots=("connector",))),
            Component("A", 0.375, _INCOMPATIBLE, _MISCONCEPTIONS, given=1),
            Component("A", 0.025, _INCOMPATIBLE, _MISCONCEPTIONS),
        ),
    )
}  # fmt: skip
"""Every model of the lab by name."""

RUNS: Final = {
    run.name: run
    for run in (
        RunRecipe("compatible", "student", "compatible-teacher", DistillRecipe("compatible")),
        RunRecipe("incompatible", "student", "incompatible-teacher", DistillRecipe("incompatible")),
    )
}
"""Every distillation run of the lab by name."""


def lineage(name: str) -> list[TrainedModel]:
    """A model's recipe preceded by those of all its ancestors, oldest first."""
    model = MODELS[name]
    return [*(lineage(model.start) if model.start is not None else []), model]


def digest(name: str, seed: int) -> str:
    """Twelve hexadecimal digits that change with anything that a model or run of this name depends on."""
    parts: dict[str, Any] = {"version": VERSION, "seed": seed}
    if name in RUNS:
        run = RUNS[name]
        parts |= {
            "run": asdict(run),
            "student": digest(run.student, seed),
            "teacher": digest(run.teacher, seed),
        }
    else:
        parts["models"] = [asdict(model) for model in lineage(name)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
