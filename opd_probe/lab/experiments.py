"""The paper's experiments in miniature: which runs each compares, under which labels, and which tables it fills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from opd_probe.errors import InputError
from opd_probe.lab.recipes import RUNS
from opd_probe.lab.runs import Job

__all__ = ["CONTINUED_RUNS", "EXPERIMENTS", "SEEDS", "Experiment", "accuracies", "chosen", "jobs_of"]

SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A comparison of runs.

    Attributes:
        figures: the paper's figures that it corresponds to.
        question: what is compared, in a line.
        runs: label, as a figure shows it → name of the run.
        models: further models whose own accuracy belongs to it: name → role.
        ks: the sizes of the top sets that its curves are kept for.
        positions, rewards, mass, continued: whether it fills the table of that name.
    """

    name: str
    figures: str
    question: str
    runs: dict[str, str]
    models: dict[str, str]
    ks: tuple[int, ...] = (16,)
    positions: bool = False
    rewards: bool = False
    mass: bool = False
    continued: bool = False


_GOOD_AND_FAILING: Final = {"compatible teacher": "good", "incompatible teacher": "failing"}

EXPERIMENTS: Final = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "success_failure",
            "1, 6, 18, 19, 20",
            "one student, a teacher of its own thinking pattern and one of another; a pair with patterns exchanged",
            _GOOD_AND_FAILING
            | {"second pair: compatible teacher": "b-taught", "second pair: incompatible teacher": "b-failing"},
            {"compatible-teacher": "teacher", "incompatible-teacher": "teacher"}
            | {"b-big-taught": "teacher", "b-incompatible": "teacher"},
            ks=(4, 8, 16),
            positions=True,
            mass=True,
        ),
        Experiment(
            "compatibility",
            "2, 3, 17",
            "one student, two teachers of similar accuracy, one whose thinking pattern is closer",
            {"closer teacher": "good", "more distant teacher": "distant"},
            {"compatible-teacher": "teacher", "distant-teacher": "teacher"},
        ),
        Experiment(
            "new_knowledge",
            "1, 4",
            "a bigger teacher of the student's own corpus, and that teacher after further training; two families",
            {
                "family A: same pipeline": "same-pipeline",
                "family A: further training": "taught",
                "family B: same pipeline": "b-same-pipeline",
                "family B: further training": "b-taught",
            },
            {"big-student": "teacher", "big-taught": "teacher", "b-big-student": "teacher", "b-big-taught": "teacher"},
        ),
        Experiment(
            "reverse_distillation",
            "1, 5",
            "an improved student distilled from what it was before, and from a bigger sibling of that",
            {"own earlier checkpoint": "reverse-own", "bigger sibling": "reverse-sibling"},
            {"student": "teacher", "big-student": "teacher"},
        ),
        Experiment(
            "supports",
            "7",
            "the loss on the student's top tokens, on the overlap alone, on the symmetric difference alone",
            {"student top-k": "good", "overlap only": "loss-overlap", "symmetric difference": "loss-non-overlap"},
            {},
        ),
        Experiment(
            "cold_start",
            "8, 21",
            "supervised training on the incompatible teacher's rollouts before distillation, and none",
            {"cold start, then OPD": "cold-start", "plain OPD": "failing"},
            {"incompatible-teacher": "teacher"},
        ),
        Experiment(
            "prompt_template",
            "9, 22",
            "the same problems told in the teacher's own prompt template, and in another",
            {"teacher's template": "template-own", "other template": "template-other"},
            {"template-teacher": "teacher"},
        ),
        Experiment(
            "prompt_content",
            "10",
            "the problems that the teacher was trained on, and others of the same kind",
            {"teacher's own problems": "template-own", "other problems": "content-other"},
            {"template-teacher": "teacher"},
        ),
        Experiment(
            "response_length",
            "11a, 12, 13, 23",
            "training responses cut after one, two or three steps of a solution, and not cut",
            {"5 tokens": "length-5", "10 tokens": "length-10", "15 tokens": "length-15", "no cut": "good"},
            {},
            positions=True,
        ),
        Experiment(
            "continuation",
            "11b",
            "the teacher takes over the student's responses after a growing number of tokens",
            {},
            {},
            continued=True,
        ),
        Experiment(
            "reward",
            "14",
            "sequence mean reward of correct and incorrect responses, under a good and a failing teacher",
            _GOOD_AND_FAILING,
            {},
            rewards=True,
        ),
        Experiment(
            "sampled_vs_topk",
            "15, 16",
            "the loss on the sampled token, and on the student's top 1, 4, 16 and 64",
            {"sampled token": "sampled", "k = 1": "top-1", "k = 4": "top-4", "k = 16": "good", "k = 64": "top-64"},
            {},
        ),
    )
}
"""Every experiment by name."""

CONTINUED_RUNS: Final = _GOOD_AND_FAILING
"""The runs whose student's responses are continued by their teacher."""


def chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names; all when there are none.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"experiment {name!r}: unknown; known are {', '.join(EXPERIMENTS)}")
    return [EXPERIMENTS[name] for name in names or EXPERIMENTS]


def jobs_of(experiment: Experiment, seeds: Sequence[int]) -> Iterator[Job]:
    """What an experiment's tables are made from, without what that needs in turn."""
    for seed in seeds:
        yield from (Job("run", name, seed) for name in experiment.runs.values())
        yield from (Job("evaluation", name, seed) for name in accuracies(experiment))
        if experiment.continued:
            yield from (Job("continuation", name, seed) for name in CONTINUED_RUNS.values())


def accuracies(experiment: Experiment) -> dict[str, str]:
    """The models whose own accuracy an experiment shows: name → role."""
    return experiment.models | {RUNS[name].teacher: "teacher" for name in experiment.runs.values()}
