"""What a metric is called on a figure, its unit, and which metrics share a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Label:
    """Title of a panel, unit of its y axis, a few words on how to read it. ``{k}`` is the k of the sets."""

    title: str
    unit: str
    reading: str = ""


PEERS: dict[str, Label] = {
    "distillation/overlap_ratio": Label("Overlap ratio, verl (k = {k})", "share of k"),
    "distillation/overlap_token_advantage": Label("Overlap advantage, verl (k = {k})", "nats", "weighted by q"),
    "distillation/student_mass": Label("Student mass on the teacher's top k, verl (k = {k})", "probability"),
    "distillation/teacher_mass": Label("Teacher mass on its top k, verl (k = {k})", "probability"),
    "distillation/loss": Label("Top-k loss, verl (k = {k})", "nats", "forward KL on the teacher's top k"),
    "distill/overlap_ratio": Label("Overlap ratio, fireworks (k = {k})", "share of k"),
    "distill/overlap_advantage": Label("Overlap advantage, fireworks (k = {k})", "nats"),
    "distill/entropy_gap": Label("Entropy gap, fireworks (k = {k})", "nats", "of renormalised top k"),
    "distill/overlap_mass_student": Label("Student overlap mass, fireworks (k = {k})", "probability"),
    "distill/overlap_mass_teacher": Label("Teacher overlap mass, fireworks (k = {k})", "probability"),
    "distill/student_entropy": Label("Student entropy, fireworks (k = {k})", "nats", "of the renormalised top k"),
    "distill/teacher_entropy": Label("Teacher entropy, fireworks (k = {k})", "nats", "of the renormalised top k"),
    "val-topk/overlap_ratio": Label("Overlap ratio, thunlp (k = {k})", "share of k"),
    "val-topk/adv_intersection": Label("Reward on the overlap, thunlp (k = {k})", "nats", "mean over tokens"),
    "val-topk/adv_only_stu": Label("Reward on student-only tokens, thunlp (k = {k})", "nats", "mean over tokens"),
    "val-topk/adv_only_tch": Label("Reward on teacher-only tokens, thunlp (k = {k})", "nats", "mean over tokens"),
    "val-topk/student_p_sum_intersection": Label("Student overlap mass, thunlp (k = {k})", "probability"),
    "val-topk/teacher_p_sum_intersection": Label("Teacher overlap mass, thunlp (k = {k})", "probability"),
    "val-topk/max_student_p_intersection": Label(
        "Student's largest p, thunlp (k = {k})", "probability", "on the overlap"
    ),
    "val-topk/max_teacher_p_intersection": Label(
        "Teacher's largest q, thunlp (k = {k})", "probability", "on the overlap"
    ),
    **{
        f"on_policy_distillation/topk_stats/{name}": Label(f"{title}, NeMo-RL (k = {{k}})", unit, reading)
        for name, title, unit, reading in (
            ("mean_jaccard", "Jaccard index of the top k", "share", "shared part of both sets together"),
            ("mean_probability_overlap", "Probability overlap", "probability", "of renormalised top k"),
            ("top1_agreement_rate", "Same most probable token", "share of states", ""),
            ("teacher_mass_on_student_topk", "Teacher mass on the overlap", "probability", "of its renormalised top k"),
            ("student_mass_on_teacher_topk", "Student mass on the overlap", "probability", "of its renormalised top k"),
            ("student_topk_mass_in_teacher_topk_mean", "Student overlap mass", "probability", ""),
            ("teacher_topk_mass_in_student_topk_mean", "Teacher overlap mass", "probability", ""),
            ("student_topk_plus_tail_entropy_bucket_mean", "Student entropy", "nats", "the rest as one token"),
            ("teacher_topk_plus_tail_entropy_bucket_mean", "Teacher entropy", "nats", "the rest as one token"),
        )
    },
}
"""Quantities in other trainers' definitions (:mod:`opd_probe.metrics.variants`), under the names that these log."""

METRICS: dict[str, Label] = {
    "overlap_ratio": Label("Overlap ratio (k = {k})", "share of k", "shared part of the two top-k sets"),
    "overlap_advantage": Label("Overlap advantage (k = {k})", "nats", "0: same shape on the overlap"),
    "overlap_advantage_beyond_one": Label(
        "Overlap advantage, |O| ≥ 2 (k = {k})", "nats", "without overlaps of one token"
    ),
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
    "absolute_reward": Label("Size of the sampled reward", "nats", "mean |r|"),
    "negative_reward_share": Label("Negative rewards", "share of states", "r < 0"),
    "near_zero_reward_share": Label("Rewards near zero", "share of states", "|r| < 1e-4 nats"),
    "reward_tail_share": Label("Rewards below the floor", "share of states", "r < −2 nats"),
    "sign_noise": Label("Sign noise", "share of states", "r < 0 where correct, r > 0 where wrong"),
    "student_token_probability": Label("Student's probability of the sampled token", "probability"),
    "teacher_token_probability": Label("Teacher's probability of the sampled token", "probability"),
    "teacher_nll": Label("Teacher's surprise at the sampled token", "nats", "−log q"),
    "student_high_entropy_share": Label("Student's high-entropy states", "share of states", "H > 0.8 nats"),
    "teacher_high_entropy_share": Label("Teacher's high-entropy states", "share of states", "H > 0.8 nats"),
    "soft_or_score": Label("Soft-OR score", "share", "uncertain or far from the teacher"),
    "teachability": Label("Teachability (k = {k})", "nats", "reverse KL × teacher's mass on the student's top k"),
    "top_1pct_signal_share": Label("Signal in the top 1 % of tokens", "share of Σ|r|"),
    "forking_reverse_kl_share": Label("Reverse KL at forking tokens", "share of Σ KL", "20 % most uncertain states"),
    "forking_entropy": Label("Forking threshold", "nats", "80th percentile of H(p)"),
    "special_token_gap": Label("Special-token gap", "nats", "mean r, special − other tokens"),
    "confident_agreeing_share": Label("Confident and agreeing", "share of states", "H and KL below their medians"),
    "confident_wrong_share": Label("Confident and wrong", "share of states", "H below, KL above its median"),
    "uncertain_agreeing_share": Label("Uncertain and agreeing", "share of states", "H above, KL below its median"),
    "uncertain_wrong_share": Label("Uncertain and wrong", "share of states", "H and KL above their medians"),
    **{
        f"wrong_teacher_perplexity_q{quarter}": Label(
            f"Teacher perplexity of wrong rollouts, quarter {quarter}", "perplexity", "exp(−mean log q)"
        )
        for quarter in (1, 2, 3, 4)
    },
    **{
        f"{side}_k_for_{share}": Label(f"k for {100 * float(share):.0f} % of {side} mass", "tokens")
        for side in ("student", "teacher")
        for share in ("0.97", "0.99")
    },
    "loss": Label("Training loss", "nats"),
    "grad_norm": Label("Gradient norm", "L2 norm", "before clipping"),
    "training_learning_rate": Label("Learning rate", "", "as the trainer logged it"),
    "training_reward": Label("Training reward", "reward", "as the trainer logged it"),
    "training_accuracy": Label("Training accuracy", "share", "as the trainer logged it"),
    "training_response_length": Label("Training response length", "tokens", "as the trainer logged it"),
    **PEERS,
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
    Panel(
        ("distillation/student_mass", "distillation/teacher_mass"),
        "Mass on the teacher's top k, verl (k = {k})",
        "probability",
        _MODELS,
    ),
    Panel(
        ("distill/overlap_mass_student", "distill/overlap_mass_teacher"),
        "Overlap mass, fireworks (k = {k})",
        "probability",
        _MODELS,
    ),
    Panel(
        ("distill/student_entropy", "distill/teacher_entropy"), "Top-k entropy, fireworks (k = {k})", "nats", _MODELS
    ),
    Panel(
        ("val-topk/student_p_sum_intersection", "val-topk/teacher_p_sum_intersection"),
        "Overlap mass, thunlp (k = {k})",
        "probability",
        _MODELS,
    ),
    Panel(
        ("val-topk/max_student_p_intersection", "val-topk/max_teacher_p_intersection"),
        "Largest probability on the overlap, thunlp (k = {k})",
        "probability",
        _MODELS,
    ),
    Panel(("reverse_kl", "forward_kl"), "KL divergence", "nats", ("reverse", "forward")),
    Panel(("student_high_entropy_share", "teacher_high_entropy_share"), "High entropy", "share of states", _MODELS),
    Panel(
        ("student_token_probability", "teacher_token_probability"),
        "Probability of the sampled token",
        "probability",
        _MODELS,
    ),
)


def panel_of(*metrics: str) -> Panel:
    """The panel that shows exactly these metrics; a metric not declared above is titled by its own name."""
    for pair in PAIRS:
        if pair.metrics == metrics:
            return pair
    (metric,) = metrics
    label = METRICS.get(metric, Label(metric.replace("_", " ").capitalize(), "value"))
    return Panel((metric,), label.title, label.unit, reading=label.reading)


def group_panels(metrics: Sequence[str], beside: Mapping[str, str] = MappingProxyType({})) -> list[Panel]:
    """Panels in the order asked for; two metrics of one pair share the panel of the first.

    Args:
        beside: by metric, the column of what was logged of it; the two then have a panel of their own.
    """
    asked = list(dict.fromkeys(metrics))
    panels: list[Panel] = []
    done: set[str] = set()
    for metric in asked:
        if metric in done:
            continue
        if metric in beside:
            alone = panel_of(metric)
            panels.append(Panel((metric, beside[metric]), alone.title, alone.unit, ("measured", "logged")))
            done.add(metric)
            continue
        pair = next((p for p in PAIRS if metric in p.metrics and set(p.metrics) <= set(asked) - set(beside)), None)
        panel = pair or panel_of(metric)
        done.update(panel.metrics)
        panels.append(panel)
    return panels
