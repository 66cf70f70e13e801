"""Named, frozen recipes: every model and run of the lab, as data.

A recipe and a seed decide an artefact to the last draw; :func:`digest` names it in the cache. To add an
experiment, add recipes: the code that trains and measures stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from opd_probe.lab.coldstart import ColdStartRecipe
from opd_probe.lab.content import added, content
from opd_probe.lab.corpus import Component, DialectRecipe
from opd_probe.lab.distill import DistillRecipe
from opd_probe.lab.evaluate import MeasureRecipe
from opd_probe.lab.losses import LossRecipe
from opd_probe.lab.models import ModelRecipe
from opd_probe.lab.pretrain import PretrainRecipe
from opd_probe.lab.task import STEP_LENGTH, PromptRecipe

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
    training: PretrainRecipe | ColdStartRecipe
    start: str | None = None
    shape: ModelRecipe = field(default_factory=ModelRecipe)


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """A distillation run: names of the student before it and of the teacher, how it is done, and how it is measured.

    The student may be named by another run, whose end it is then.
    """

    name: str
    student: str
    teacher: str
    distillation: DistillRecipe
    measure: MeasureRecipe = added(MeasureRecipe())


def _model(
    name: str, start: str | None, steps: int, rate: float, *corpus: Component, shape: ModelRecipe | None = None
) -> TrainedModel:
    return TrainedModel(name, PretrainRecipe(name, corpus, steps, rate), start, shape or ModelRecipe())


POOL: Final = 32
"""Problems of the template teacher's own training set."""

_BIG: Final = ModelRecipe(hidden_size=128, layers=3, heads=4, intermediate_size=384)
_MISCONCEPTIONS: Final = 4
_BASE: Final = DialectRecipe("base", zipf=1.2, noise=0.5)
_STUDENT: Final = DialectRecipe("student", zipf=1.2, noise=0.5)
_COMPATIBLE: Final = DialectRecipe("compatible", zipf=1.5, noise=1.0)
_INCOMPATIBLE: Final = DialectRecipe("incompatible", zipf=1.2, noise=1.6, cues=12)
_DISTANT: Final = DialectRecipe("distant", zipf=1.5, noise=1.4)
_B_STUDENT: Final = DialectRecipe("b-student", zipf=1.2, noise=0.5)
_B_COMPATIBLE: Final = DialectRecipe("b-compatible", zipf=1.5, noise=1.0)
_B_INCOMPATIBLE: Final = DialectRecipe("b-incompatible", zipf=1.2, noise=1.6, cues=12)
_BASE_CORPUS: Final = (Component("A", 0.7, _BASE, _MISCONCEPTIONS), Component("B", 0.3, _BASE, _MISCONCEPTIONS))
_A_STUDENT_CORPUS: Final = Component("A", 1.0, _STUDENT, _MISCONCEPTIONS)
_B_STUDENT_CORPUS: Final = Component("B", 1.0, _B_STUDENT, _MISCONCEPTIONS)

MODELS: Final = {
    model.name: model
    for model in (
        # The lineage's common ancestor: mostly pattern A, some B, and wrong about 4 of 10 operations in both.
        _model(
            "base", None, 700, 4e-3, *_BASE_CORPUS,
        ),
        # The student keeps the misconceptions and settles on pattern A.
        _model("student", "base", 100, 1e-3, _A_STUDENT_CORPUS),
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
        # Bigger siblings, on the same corpora: the student's, and that one trained further on right arithmetic.
        _model("big-base", None, 600, 4e-3, *_BASE_CORPUS, shape=_BIG),
        # One schedule leaves some seeds before the point where the arithmetic is learned; a second one does not.
        _model("big-base-longer", "big-base", 400, 3e-3, *_BASE_CORPUS, shape=_BIG),
        _model("big-student", "big-base-longer", 100, 1e-3, _A_STUDENT_CORPUS, shape=_BIG),
        _model("big-taught", "big-student", 200, 2e-3, Component("A", 1.0, _COMPATIBLE), shape=_BIG),
        # A second family that settles on pattern B: student, bigger sibling, that one trained further, and a teacher
        # that is incompatible as the one above, with the patterns exchanged.
        _model("b-student", "base", 150, 2e-3, _B_STUDENT_CORPUS),
        _model("b-big-student", "big-base-longer", 150, 2e-3, _B_STUDENT_CORPUS, shape=_BIG),
        _model("b-big-taught", "b-big-student", 200, 2e-3, Component("B", 1.0, _B_COMPATIBLE), shape=_BIG),
        _model(
            "b-incompatible", "base", 400, 4e-3,
            Component("A", 0.6, replace(_B_INCOMPATIBLE, own_slots=("connector",))),
            Component("B", 0.375, _B_INCOMPATIBLE, _MISCONCEPTIONS, given=1),
            Component("B", 0.025, _B_INCOMPATIBLE, _MISCONCEPTIONS),
        ),
        # As accurate as the compatible teacher, but in the other pattern; what was begun in pattern A it continues in
        # words further from the student's, and with two of the four misconceptions.
        _model(
            "distant-teacher", "compatible-teacher", 250, 3e-3,
            Component("B", 0.6, replace(_DISTANT, own_slots=("connector",))),
            Component("A", 0.375, _DISTANT, _MISCONCEPTIONS // 2, given=1),
            Component("A", 0.025, _DISTANT, _MISCONCEPTIONS // 2),
        ),
        # Trained further in a prompt template of its own, half of the time on a small set of problems; in the old
        # template it stays as it was.
        _model(
            "template-teacher", "base", 300, 3e-3,
            Component("A", 0.5, _COMPATIBLE, frame="answer", pool=POOL),
            Component("A", 0.3, _COMPATIBLE, frame="answer"),
            Component("A", 0.2, _STUDENT, _MISCONCEPTIONS),
        ),
        TrainedModel(
            "cold-student", ColdStartRecipe("cold-student", "incompatible-teacher", 2048, 200, 2e-3), "student"
        ),
    )
}  # fmt: skip
"""Every model of the lab by name."""

_RUN: Final = DistillRecipe(
    "lab", steps=50, checkpoints=(5, 15, 30, 50), learning_rate=6e-4, warmup=4, prompts_per_step=48
)
"""What the runs of the experiments have in common: shorter and faster than those of the demo."""

_MAIN: Final = MeasureRecipe(ks=(4, 8, 16), depth=64)
_OWN_TEMPLATE: Final = PromptRecipe("answer", POOL)


def _run(
    name: str,
    student: str,
    teacher: str,
    loss: LossRecipe | None = None,
    measure: MeasureRecipe | None = None,
    **how: Any,
) -> RunRecipe:
    distillation = replace(_RUN, label=name, loss=loss or LossRecipe(), **how)
    return RunRecipe(name, student, teacher, distillation, measure or MeasureRecipe())


def _reverse(name: str, teacher: str) -> RunRecipe:
    return _run(name, "good", teacher, measure=MeasureRecipe(pair=("student", "big-student")))


def _supervised(name: str, loss: LossRecipe) -> RunRecipe:
    return _run(name, "student", "compatible-teacher", loss)


def _capped(length: int) -> RunRecipe:
    return _run(f"length-{length}", "student", "compatible-teacher", max_new_tokens=length)


RUNS: Final = {
    run.name: run
    for run in (
        # The demo's, which are those of the table of signatures.
        RunRecipe("compatible", "student", "compatible-teacher", DistillRecipe("compatible")),
        RunRecipe("incompatible", "student", "incompatible-teacher", DistillRecipe("incompatible")),
        # The experiments'. One run may serve several of them.
        _run("good", "student", "compatible-teacher", measure=_MAIN),
        _run("failing", "student", "incompatible-teacher", measure=_MAIN),
        _run("distant", "student", "distant-teacher"),
        _run("same-pipeline", "student", "big-student"),
        _run("taught", "student", "big-taught"),
        _run("b-same-pipeline", "b-student", "b-big-student"),
        _run("b-taught", "b-student", "b-big-taught", measure=_MAIN),
        _run("b-failing", "b-student", "b-incompatible", measure=_MAIN),
        _reverse("reverse-own", "student"),
        _reverse("reverse-sibling", "big-student"),
        _supervised("loss-overlap", LossRecipe("overlap")),
        # As in the reference, the symmetric difference alone is not renormalised.
        _supervised("loss-non-overlap", LossRecipe("non_overlap", renormalise=False)),
        _run("cold-start", "cold-student", "incompatible-teacher"),
        _run("template-own", "student", "template-teacher", prompts=_OWN_TEMPLATE),
        _run("template-other", "student", "template-teacher", prompts=PromptRecipe("total", POOL)),
        _run("content-other", "student", "template-teacher", prompts=PromptRecipe("answer")),
        *(_capped(steps * STEP_LENGTH) for steps in (1, 2, 3)),
        _supervised("sampled", LossRecipe("sampled")),
        # Renormalised on one token there would be nothing to learn: its weight is 1, its probabilities the true ones.
        _supervised("top-1", LossRecipe("student", 1, renormalise=False, weights="none")),
        _supervised("top-4", LossRecipe("student", 4)),
        _supervised("top-64", LossRecipe("student", 64)),
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
            "run": content(run),
            "student": digest(run.student, seed),
            "teacher": digest(run.teacher, seed),
        }
        if run.measure.pair is not None:
            parts["pair"] = [digest(teacher, seed) for teacher in run.measure.pair]
    else:
        parts["models"] = [content(model) for model in lineage(name)]
        written = [model.training.teacher for model in lineage(name) if isinstance(model.training, ColdStartRecipe)]
        if written:
            parts["teachers"] = [digest(teacher, seed) for teacher in written]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
