"""Figures 8-16 and 21-23: recipes, prompts, response length, reward, and how many tokens the loss sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import opd_probe
from opd_probe.lab.gallery.data import Data
from opd_probe.lab.gallery.entry import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIR: Final = ["compatible teacher", "incompatible teacher"]


@figure("fig08_cold_start", "8", "dynamics")
def cold_start(data: Data) -> Figure:
    """Cold start.

    Supervised training on the teacher's rollouts before distillation, and none. Does the cold start begin with
    more overlap and a smaller entropy gap, and does accuracy follow?
    """
    return opd_probe.plot_alignment(
        data.curves("cold_start"), metrics=["accuracy", "overlap_ratio", "entropy_gap"], title="Cold start"
    )


@figure("fig09_prompt_template", "9, 22", "compatibility")
def prompt_template(data: Data) -> Figure:
    """The teacher's own prompt template, and another.

    The same problems in the teacher's own prompt template and in another: accuracy, and the overlap at the
    student's states.
    """
    return opd_probe.plot_alignment(
        data.curves("prompt_template"), metrics=["accuracy", "overlap_ratio"], title="Prompt template"
    )


@figure("fig10_prompt_content", "10", "prompts")
def prompt_content(data: Data) -> Figure:
    """The teacher's own problems, and others.

    The problems that the teacher was trained on, and others of the same kind. In the paper the former teach more
    with *less* overlap, more student overlap mass and less student entropy: watch the last one, exploration
    shrinks.
    """
    return opd_probe.plot_alignment(
        data.curves("prompt_content"),
        metrics=["accuracy", "overlap_ratio", "student_overlap_mass", "student_entropy"],
        title="Prompt content",
    )


@figure("fig11a_response_length", "11a", "accuracy")
def response_length(data: Data) -> Figure:
    """The maximum response length.

    Accuracy on whole responses after training on responses that were cut at a number of tokens. Where does a longer
    one stop to help?
    """
    return opd_probe.plot_bars(
        data.bars("response_length", role="distilled"), title="Accuracy by maximum response length"
    )


@figure("fig11b_continuation", "11b", "continuation")
def continuation(data: Data) -> Figure:
    """What the teacher can still mend, by depth.

    The teacher takes over the student's response after a number of tokens. Does the gain over the
    student's own continuation fall with depth? Where it is gone, nothing is left that a teacher could mend.
    """
    return opd_probe.plot_continuation(data.rows("continuation", "continuation"))


@figure("fig12_length_dynamics", "12", "stability")
def length_dynamics(data: Data) -> Figure:
    """Stability by maximum response length.

    Overlap, student entropy and gradient norm by maximum response length. A collapse shows as overlap that falls
    back late, with entropy and gradient norm rising.
    """
    return opd_probe.plot_alignment(
        data.logged("response_length"),
        metrics=["overlap_ratio", "student_entropy", "grad_norm"],
        title="Maximum response length",
    )


@figure("fig13_entropy_length", "13, 23", "entropy")
def entropy_length(data: Data) -> Figure:
    """Entropy along the response, by maximum response length.

    Student and teacher entropy by position and step, for each maximum response length. Watch the positions beyond
    the cut, which training never reached. In the paper high entropy starts at the end and moves to the front.
    """
    return opd_probe.plot_heatmap(data.rows("positions", "response_length"))


@figure("fig13_entropy_success", "13, 23", "entropy")
def entropy_success(data: Data) -> Figure:
    """Entropy along the response, in success and failure.

    The same for the run that works and the one that fails: where the two models' entropies meet, and where they
    do not.
    """
    return opd_probe.plot_heatmap(data.rows("positions", "success_failure", run=_PAIR))


@figure("fig14_reward", "14", "rewards")
def reward(data: Data) -> Figure:
    """The reward of correct and of incorrect responses.

    How well the sequence mean reward tells correct from incorrect responses of the student before training, under
    a good and under a failing teacher. A failing teacher may still rank responses well: the reward alone does not
    warn.
    """
    return opd_probe.plot_rewards(data.rows("rewards", "reward", step=0), data.curves("reward", step=0))


@figure("fig15_sampled_vs_topk", "15", "accuracy")
def sampled_vs_topk(data: Data) -> Figure:
    """The sampled token, and the top k.

    Accuracy after training on the sampled token alone and on the student's top 1, 4, 16 and 64.
    """
    return opd_probe.plot_bars(data.bars("sampled_vs_topk", role="distilled"), title="Accuracy by tokens in the loss")


@figure("fig16_topk_dynamics", "16", "stability")
def topk_dynamics(data: Data) -> Figure:
    """Stability by tokens in the loss.

    The same runs by step. In the paper only k = 1 is worse, and unstable.
    """
    return opd_probe.plot_alignment(
        data.logged("sampled_vs_topk"),
        metrics=["overlap_ratio", "student_entropy", "grad_norm"],
        title="Tokens in the loss",
    )


@figure("fig21_cold_start_mass", "21", "overlap-mass")
def cold_start_mass(data: Data) -> Figure:
    """Overlap mass after a cold start.

    The overlap masses of both models in the runs of Figure 8.
    """
    return opd_probe.plot_alignment(
        data.curves("cold_start"),
        metrics=["student_overlap_mass", "teacher_overlap_mass"],
        columns=1,
        title="Cold start",
    )
