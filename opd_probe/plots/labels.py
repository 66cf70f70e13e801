"""What a metric is called on a figure, its unit, and which metrics share a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """Title of a panel, unit of its y axis, a few words on how to read it. ``{k}`` is the k of the sets."""

    title: str
    unit: str
    reading: str = ""


METRICS: dict[str, Label] = {
    "overlap_ratio": Label("Overlap ratio (k = {k})", "share of k", "shared part of the two top-k sets"),
    "overlap_advantage": Label("Overlap advantage (k = {k})", "nats", "0: same shape on the overlap"),
    "entropy_gap": Label("Entropy gap", "nats", "mean |teacher − student| per state"),
    "student_entropy": Label("Student entropy", "nats"),
    "teacher_entropy": Label("Teacher entropy", "nats"),
    "student_overlap_mass": Label("Student overlap mass (k = {k})", "probability"),
    "teacher_overlap_mass": Label("Teacher overlap mass (k = {k})", "probability"),
    "student_topk_mass": Label("Student top-k mass (k = {k})", "probability"),
    "teacher_topk_mass": Label("Teacher top-k mass (k = {k})", "probability"),
    "reverse_kl": Label("Reverse KL", "nats"),
    "forward_kl": Label("Forward KL", "nats"),
    "jsd": Label("Jensen-Shannon divergence", "nats", "at most ln 2 = 0.693"),
    "sampled_reward": Label("Sampled-token reward", "nats", "log p(teacher) − log p(student)"),
    "sequence_mean_reward": Label("Sequence mean reward", "nats", "mean over rollouts"),
    "reward_auroc": Label("AUROC of the reward", "AUROC"),
    "extreme_advantage_gap": Label("Extreme advantage gap (k = {k})", "probability"),
    "topk_reverse_kl_student": Label("Reverse KL on student top-k (k = {k})", "nats"),
    "topk_reverse_kl_teacher": Label("Reverse KL on teacher top-k (k = {k})", "nats"),
    "topk_reverse_kl_overlap": Label("Reverse KL on the overlap (k = {k})", "nats"),
    "topk_reverse_kl_non_overlap": Label("Reverse KL off the overlap (k = {k})", "nats"),
    "topk_reverse_kl_union": Label("Reverse KL on the union (k = {k})", "nats"),
    "accuracy": Label("Accuracy", "share of rollouts", "rollouts whose answer is correct"),
    "response_length": Label("Response length", "tokens"),
    "truncation_rate": Label("Truncation rate", "share of rollouts", "rollouts cut at the length limit"),
    "loss": Label("Training loss", "nats"),
    "grad_norm": Label("Gradient norm", "L2 norm", "before clipping"),
    "gap_recovery": Label("Gap recovery", "share of the gap", "1: as accurate as its teacher"),
}


AXES = {"step": "training step", "depth": "length of the student's prefix (tokens)"}
"""Titles of x axes."""


@dataclass(frozen=True)
class Panel:
    """One panel: one metric, or two that share it (the first solid, the second dashed).

    ``roles`` names the two in the panel's subtitle; it is empty for one metric.
    """

    metrics: tuple[str, ...]
    title: str
    unit: str
    roles: tuple[str, ...] = ()
    reading: str = ""

    def subtitle(self, lines: bool = True) -> str:
        """How to tell the two metrics apart (as lines or as single points), or how to read the one."""
        first, second = ("solid", "dashed") if lines else ("filled", "open")
        return f"{first}: {self.roles[0]}, {second}: {self.roles[1]}" if self.roles else self.reading


_MODELS = ("student", "teacher")
PAIRS: tuple[Panel, ...] = (
    Panel(("student_entropy", "teacher_entropy"), "Entropy", "nats", _MODELS),
    Panel(("student_overlap_mass", "teacher_overlap_mass"), "Overlap mass (k = {k})", "probability", _MODELS),
    Panel(("student_topk_mass", "teacher_topk_mass"), "Top-k mass (k = {k})", "probability", _MODELS),
    Panel(("reverse_kl", "forward_kl"), "KL divergence", "nats", ("reverse", "forward")),
)


def panel_of(*metrics: str) -> Panel:
    """The panel that shows exactly these metrics; a metric not declared above is titled by its own name."""
    for pair in PAIRS:
        if pair.metrics == metrics:
            return pair
    (metric,) = metrics
    label = METRICS.get(metric, Label(metric.replace("_", " ").capitalize(), "value"))
    return Panel((metric,), label.title, label.unit, reading=label.reading)


def group_panels(metrics: Sequence[str]) -> list[Panel]:
    """Panels in the order asked for; two metrics of one pair share the panel of the first."""
    asked = list(dict.fromkeys(metrics))
    panels: list[Panel] = []
    done: set[str] = set()
    for metric in asked:
        if metric in done:
            continue
        pair = next((p for p in PAIRS if metric in p.metrics and set(p.metrics) <= set(asked)), None)
        panel = pair or panel_of(metric)
        done.update(panel.metrics)
        panels.append(panel)
    return panels
