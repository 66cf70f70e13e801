"""Figures 1-7 and 18-20: what makes distillation work, and what can be seen when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import opd_probe
from opd_probe.lab.gallery.data import Data
from opd_probe.lab.gallery.entry import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIR: Final = ["compatible teacher", "incompatible teacher"]
_SECOND_PAIR: Final = [f"second pair: {run}" for run in _PAIR]
_DYNAMICS: Final = ["accuracy", "overlap_ratio", "overlap_advantage", "entropy_gap"]


@figure("fig01_overview", "1", "overview")
def overview(data: Data) -> Figure:
    """Gap recovery, overlap, and reverse distillation.

    Left, the share of the gap to the teacher that a run closes: is it larger for a teacher that knows something new
    than for a bigger one of the same pipeline? Middle, the overlap of a run that works and of one that does not.
    Right, what happens to an improved student that is distilled from what it was before.
    """
    return opd_probe.plot_overview(
        data.bars("new_knowledge", role="distilled"),
        data.curves("success_failure", run=_PAIR),
        data.curves("reverse_distillation"),
        headings=("Gap recovery", "Overlap ratio", "Reverse distillation"),
    )


@figure("fig02_compatibility", "2, 17", "compatibility")
def compatibility(data: Data) -> Figure:
    """One student, two teachers of similar accuracy, one of which thinks more like it.

    Two teachers of similar accuracy (dotted). Does the student of the closer one learn more, and does its overlap
    start higher? The paper's Figure 17 repeats the left panel for each benchmark; the lab has one.
    """
    return opd_probe.plot_alignment(
        data.curves("compatibility"),
        metrics=["accuracy", "overlap_ratio"],
        title="Thinking-pattern compatibility",
        references=data.levels(
            "compatibility",
            {"compatible-teacher": "closer teacher itself", "distant-teacher": "distant teacher itself"},
        ),
    )


@figure("fig03_teachers", "3", "accuracy")
def teachers(data: Data) -> Figure:
    """The accuracy of the two teachers.

    The two teachers' own accuracy on the held-out problems. Only if they are alike is what Figure 2 shows no matter
    of skill.
    """
    return opd_probe.plot_bars(data.bars("compatibility", role="teacher"), title="The teachers' own accuracy")


@figure("fig04_family_a", "4", "compatibility")
def family_a(data: Data) -> Figure:
    """New knowledge, family A.

    A bigger teacher trained on the student's own corpus, and that teacher after further training. Which one lifts
    the accuracy, and does overlap tell the two runs apart?
    """
    return opd_probe.plot_alignment(
        data.curves("new_knowledge", run=["family A: same pipeline", "family A: further training"]),
        metrics=["accuracy", "overlap_ratio"],
        title="New knowledge (family A)",
    )


@figure("fig04_family_b", "4", "compatibility")
def family_b(data: Data) -> Figure:
    """New knowledge, family B.

    As family A, with the thinking patterns of the two exchanged.
    """
    return opd_probe.plot_alignment(
        data.curves("new_knowledge", run=["family B: same pipeline", "family B: further training"]),
        metrics=["accuracy", "overlap_ratio"],
        title="New knowledge (family B)",
    )


@figure("fig04_gap_recovery", "4", "recovery")
def recovered(data: Data) -> Figure:
    """Gap recovery in both families.

    (accuracy after − before) / (teacher's − before): how much of what the teacher knows better reaches the
    student.
    """
    return opd_probe.plot_bars(
        data.bars("new_knowledge", role="distilled"), metrics=["gap_recovery"], title="Gap recovery by teacher"
    )


@figure("fig05_reverse_distillation", "5", "compatibility")
def reverse_distillation(data: Data) -> Figure:
    """Reverse distillation.

    An improved student distilled from its own earlier checkpoint, and from a bigger sibling of that. Do both fall
    to the earlier level (dotted), and on nearly the same path?
    """
    return opd_probe.plot_alignment(
        data.curves("reverse_distillation"),
        metrics=["accuracy", "overlap_ratio"],
        title="Reverse distillation",
        references=data.levels("reverse_distillation", {"student": "earlier checkpoint itself"}),
    )


@figure("fig05_teachers_apart", "5", "compatibility")
def teachers_apart(data: Data) -> Figure:
    """How far the two teachers differ from each other, where the student goes.

    The two teachers compared with each other at the states that the student visits: if they can hardly be told
    apart there, the student has no way to learn different things from them.
    """
    return opd_probe.plot_alignment(
        data.rows("teachers", "reverse_distillation"),
        metrics=["overlap_ratio", "reverse_kl"],
        title="The two teachers beside each other",
    )


@figure("fig06_success_failure", "6", "dynamics")
def success_failure(data: Data) -> Figure:
    """Success and failure.

    In the paper's run that works the overlap rises, the overlap advantage goes to 0 and the entropy gap closes; in
    the one that fails all three stay where they began, from the start.
    """
    return opd_probe.plot_alignment(
        data.curves("success_failure", run=_PAIR),
        metrics=_DYNAMICS,
        title="Success and failure",
    )


@figure("fig07_supports", "7", "dynamics")
def supports(data: Data) -> Figure:
    """Which tokens the loss needs.

    The loss on the student's top k, on the overlap alone, and on the symmetric difference alone. Is the overlap
    enough? Does the symmetric difference first lower the overlap?
    """
    return opd_probe.plot_alignment(
        data.curves("supports"),
        metrics=["accuracy", "overlap_ratio", "overlap_advantage"],
        title="Support of the loss",
    )


@figure("fig18_overlap_mass", "18", "overlap-mass")
def overlap_mass(data: Data) -> Figure:
    """Overlap mass of both models.

    The probability that the shared tokens hold, for both models: in the paper 97-99 % (grey) throughout.
    """
    return opd_probe.plot_alignment(
        data.curves("success_failure", run=_PAIR),
        metrics=["student_overlap_mass", "teacher_overlap_mass"],
        columns=1,
        title="Overlap mass",
    )


@figure("fig18_mass_by_rank", "18", "mass")
def mass_by_rank(data: Data) -> Figure:
    """Mass by rank.

    How few tokens hold 97 and 99 % of each model's mass, and how much of it the two share for each k.
    """
    table = data.rows("mass", "success_failure", run=_PAIR)
    return opd_probe.plot_mass(table, data.curves("success_failure", run=_PAIR))


@figure("fig19_training_signal", "19", "training")
def training_signal(data: Data) -> Figure:
    """What the trainer sees.

    Loss and gradient norm of every step, and the probability gap at the token of the most extreme advantage. Does
    the failing run start with the *smaller* loss and gradient, and does its gap stay?
    """
    return opd_probe.plot_alignment(
        data.logged("success_failure", run=_PAIR),
        metrics=["loss", "grad_norm", "extreme_advantage_gap"],
        title="Training signal",
    )


@figure("fig20_second_pair", "20", "dynamics")
def second_pair(data: Data) -> Figure:
    """Success and failure, second pair.

    As Figure 6, with the thinking patterns of student and teachers exchanged.
    """
    return opd_probe.plot_alignment(
        data.curves("success_failure", run=_SECOND_PAIR), metrics=_DYNAMICS, title="Success and failure (second pair)"
    )
