"""What the traces of a run say about it, in a word and its evidence: every rule, its threshold and where it is from.

The verdict is about alignment alone, which is what traces measure: whether the student comes to say what the teacher
says at its own states. Whether that makes it better is another question, which ``accuracy_flat`` and its kin ask.
``docs/report.md`` has what the rules say of the lab's runs beside what came of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from opd_probe.curves.intervals import FEW_PROMPTS, Floats
from opd_probe.curves.sampling import AS_SCORED
from opd_probe.curves.trend import Course, Found, trend_weights
from opd_probe.digits import true_minus, with_interval

VerdictName = Literal["aligning", "aligned", "stagnating", "drifting", "unclear"]

CLOSED = 0.15
"""The least share of the initial distance (mean of what is closed of 1 − overlap ratio and of the reverse KL) that
counts as aligning. Chosen on the lab's runs of seed 0; of the paper's pairs the successful one closes .68 of its
1 − overlap ratio (.72 → .91), the failing one .12 (.75 → .78)."""

CLEARLY = 0.3
"""The share that a run stagnates without: where the interval reaches it, too little is known. The lab's runs that
became better closed .42 of the distance in the mean."""

APART = -0.05
"""The share at or below which the distance grew."""

ALIGNED_OVERLAP = 0.9
"""The overlap ratio from which on two models are aligned: where the paper's successful run ends (Fig. 6, .91)."""

ALIGNED_KL = 0.1
"""The reverse KL, in nats, that two aligned models do not exceed."""

GAIN = 0.05
"""The least change of the accuracy that is one."""

TRUNCATED = 0.1
"""The share of responses cut at the length limit from which on curves speak of cut responses (arXiv 2604.08527: it
goes to 1 within some 30 steps of a run that collapses)."""

DRIFT = 1.5
"""The factor by which lengths drift."""

COLLAPSE = 0.5
"""The student's entropy, over its own at the first step and over the teacher's at the same states."""

TOP_SHARE_LIMIT = 0.5
"""The share of Σ|r| that the top 1 % of tokens may hold (ms-swift#6600, as the doctor's signal_share)."""

REVERSAL = 0.05
"""The overlap ratio that is lost from the best step to the last."""

REPETITIVE = 0.1
"""The share of responses that end in repetition (arXiv 2604.08527: .3 to .6 in runs that collapse)."""

FEW_STEPS = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the traces beside their curves.

    Attributes:
        states: whose states they are, a word for each trace: ``own``, ``fixed`` or ``unknown``.
        token_sources: likewise: ``sampled_ids``, ``retokenized`` or ``mixed``.
        sampling: likewise, how they were sampled (:func:`opd_probe.curves.sampling.sampling_label`).
        top_share: of Σ|r| at the last step, that the top 1 % of tokens hold; NaN where it is unknown.
        repetition: share of the last step's responses that end in repetition; NaN where it is unknown.
        outside: the larger of both models' mean mass outside the shared vocabulary, at any step.
    """

    states: tuple[str, ...]
    token_sources: tuple[str, ...]
    sampling: tuple[str | None, ...]
    top_share: float = math.nan
    repetition: float = math.nan
    outside: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A sentence, and the figures that it rests on."""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what qualifies it and the evidence for each, by name.

    Attributes:
        next: what to look at next, a sentence each.
    """

    verdict: VerdictName
    qualifiers: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    next: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        known_way = self.verdict in ("aligning", "aligned") and {"accuracy_flat", "accuracy_falls"} & {*self.qualifiers}
        return (WITHOUT_WAY if known_way else SENTENCES)[self.verdict]


SENTENCES: Mapping[VerdictName, str] = {
    "aligning": "The student comes to say what the teacher says at its own states.",
    "aligned": "Student and teacher say nearly the same from the start: there is little left to learn from this one.",
    "stagnating": "The student does not come closer to the teacher.",
    "drifting": "The student moves away from the teacher.",
    "unclear": "What is measured does not tell yet whether the student comes closer to the teacher.",
}
WITHOUT_WAY: Mapping[VerdictName, str] = {
    "aligning": "The student comes to say what the teacher says, and does not get better by it.",
    "aligned": "The student is aligned with a teacher that does not know the way.",
}

Qualifier = Callable[[Course, Facts], Evidence | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """A qualifier: when it is said, where the rule is from, and what to look at then."""

    name: str
    rule: str
    source: str
    advice: str
    find: Qualifier


RULES: dict[str, Rule] = {}
"""Every qualifier by name, in the order in which they are said."""


def qualifier(name: str, *, rule: str, source: str, advice: str) -> Callable[[Qualifier], Qualifier]:
    """Enter a qualifier."""

    def enter(find: Qualifier) -> Qualifier:
        RULES[name] = Rule(name, rule, source, advice, find)
        return find

    return enter


def judge(course: Course, facts: Facts) -> Judgement:
    """The verdict on the traces of one run and teacher."""
    verdict, evidence = _verdict(course)
    found = {name: said for name, rule in RULES.items() if (said := rule.find(course, facts)) is not None}
    advice = [*ADVICE[verdict], *(RULES[name].advice for name in found)]
    return Judgement(verdict, tuple(found), {verdict: evidence, **found}, tuple(dict.fromkeys(advice)))


ADVICE: Mapping[VerdictName, tuple[str, ...]] = {
    "aligning": (),
    "aligned": ("what the teacher knows that the student does not: AUROC of the reward, the teacher's own accuracy",),
    "stagnating": (
        "the first curves: an overlap that starts low and stays calls for a cold start or a closer teacher",
        "opd-probe doctor: templates, tokenizers and masks that differ look like this too",
    ),
    "drifting": ("the step at which it turns, and the learning rate; opd-probe compare of its two neighbours",),
    "unclear": (),
}


def _verdict(course: Course) -> tuple[VerdictName, Evidence]:
    values = _measured(course)
    overlap = course.values("overlap_ratio")
    if not np.isfinite(overlap).all():
        return "unclear", Evidence("The overlap ratio is not defined at every step.", values)
    said = _aligned(course)
    if said is not None:
        return "aligned", Evidence(said, values)
    n = len(course.steps)
    if n < 2:
        return "unclear", Evidence(f"One step is measured: overlap ratio {overlap[0]:.3g}. A course needs two.", values)
    closed = closed_share(course)
    values["closed_share"] = _triple(closed)
    said = f"{_course_text(course)} {_percent(closed)} of the initial distance is closed"
    if math.isnan(closed.lo) or math.isnan(closed.hi):
        return "unclear", Evidence(f"{said}; too few prompts for an interval.", values)
    bound = f"{CLOSED:.0%} would count as aligning"
    if closed.value >= CLOSED and closed.lo > 0:
        return "aligning", Evidence(f"{said} ({bound}).", values)
    if closed.value <= APART and closed.hi < 0:
        return "drifting", Evidence(f"{said}: it grew.", values)
    if closed.value < CLOSED and closed.hi < CLEARLY:
        return "stagnating", Evidence(f"{said} ({bound}).", values)
    return "unclear", Evidence(f"{said}: the interval holds both what stands still and what aligns.", values)


def closed_share(course: Course) -> Found:
    """The share of the initial distance that is closed from the first to the last step: the mean of the shares of
    1 − overlap ratio and of the reverse KL (of −overlap advantage where that is not known), each along its trend."""
    distances = [name for name in ("reverse_kl", "overlap_advantage") if np.isfinite(course.values(name)).all()]
    return course.derived(("overlap_ratio", *distances[:1]), share_closed, exact=True)


def share_closed(overlap: Floats, *distances: Floats) -> Floats:
    """[...], the mean of what is closed of 1 − overlap ratio and of each distance, from values [..., s] at the steps:
    the change along the trend over what there was at the first step, cut off at −1 and 1."""
    weights = trend_weights(overlap.shape[-1])

    def of(change: Floats, start: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(change / start, -1.0, 1.0)

    shares = [of(overlap @ weights, 1.0 - overlap[..., 0])]
    shares += [of(-(distance @ weights), distance[..., 0]) for distance in distances]
    closed: Floats = np.mean(shares, axis=0)
    return closed


def _aligned(course: Course) -> str | None:
    overlaps = [course.at("overlap_ratio", place) for place in range(len(course.steps))]
    divergence = course.values("reverse_kl")
    if not all(one.lo >= ALIGNED_OVERLAP for one in overlaps) or np.nanmax(divergence, initial=0.0) > ALIGNED_KL:
        return None
    least = min(overlaps, key=lambda one: one.value)
    return (
        f"The overlap ratio is {least.value:.3f} [{least.lo:.3f}, {least.hi:.3f}] or more at every step "
        f"({ALIGNED_OVERLAP} is where the paper's successful run ends), the reverse KL at most "
        f"{np.nanmax(divergence, initial=0.0):.2g} nats."
    )


MEASURED = (
    "overlap_ratio", "reverse_kl", "overlap_advantage", "entropy_gap", "student_overlap_mass", "teacher_overlap_mass",
)  # fmt: skip
"""What a verdict shows of the first and the last step, and the trend between."""


def _measured(course: Course) -> dict[str, Any]:
    last = len(course.steps) - 1
    values: dict[str, Any] = {
        "first_step": course.steps[0], "last_step": course.steps[last], "n_steps": last + 1,
        "n_prompts": min(course.n_prompts), "n_common_prompts": course.n_common, "trend": TREND,
    }  # fmt: skip
    for name in MEASURED:
        values[name] = {"first": _triple(course.at(name, 0)), "last": _triple(course.at(name, last))}
        if last:
            values[name]["trend"] = _triple(course.trend(name))
    return values


TREND = (
    "change along the least-squares line over the steps in their order; 95 % interval by leaving out one prompt from "
    "all steps at once (jackknife, Student's t)"
)


def _course_text(course: Course) -> str:
    overlap, divergence = course.values("overlap_ratio"), course.values("reverse_kl")
    text = f"Overlap ratio {overlap[0]:.3f} → {overlap[-1]:.3f}"
    if np.isfinite(divergence[[0, -1]]).all():
        text += f", reverse KL {divergence[0]:.3g} → {divergence[-1]:.3g} nats"
    return f"{text} from {_step(course, 0)} to {_step(course, -1)};"


def _step(course: Course, place: int) -> str:
    step = course.steps[place]
    return "the first trace" if step is None else f"step {step}"


def _percent(found: Found) -> str:
    return f"{found.value:.0%} [{found.lo:.0%}, {found.hi:.0%}]".replace("-", "−")


def _triple(found: Found) -> dict[str, float]:
    return {"value": found.value, "lo": found.lo, "hi": found.hi}


def _known(course: Course, name: str, *, steps: int = 2) -> bool:
    return len(course.steps) >= steps and bool(np.isfinite(course.values(name)[[0, -1]]).all())


@qualifier(
    "accuracy_flat",
    rule=f"the accuracy changes by less than {GAIN} along its trend, and its interval holds 0 or less",
    source="chosen on the lab's runs of seed 0",
    advice="whether the teacher knows more at all: its own accuracy, and its accuracy when it goes on from the "
    "student's prefixes",
)
def accuracy_flat(course: Course, facts: Facts) -> Evidence | None:
    change = _accuracy(course, facts)
    if change is None or _falls(change) or not (change.value < GAIN and not change.lo > 0):
        return None
    return _change_of(course, "accuracy", change, "The accuracy is flat")


@qualifier(
    "accuracy_falls",
    rule=f"the accuracy falls by {2 * GAIN} or more along its trend, with an interval below 0",
    source="chosen on the lab's runs of seed 0",
    advice="responses that became wrong: opd-probe tokens of the last step",
)
def accuracy_falls(course: Course, facts: Facts) -> Evidence | None:
    change = _accuracy(course, facts)
    return (
        _change_of(course, "accuracy", change, "The accuracy falls") if change is not None and _falls(change) else None
    )


def _accuracy(course: Course, facts: Facts) -> Found | None:
    """Its trend; None where it is not known of each checkpoint, as where all are at the same responses."""
    if "fixed" in facts.states or len(course.steps) < 2 or not np.isfinite(course.values("accuracy")).all():
        return None
    return course.trend("accuracy")


def _falls(change: Found) -> bool:
    return change.value <= -2 * GAIN and change.hi < 0


@qualifier(
    "accuracy_unknown",
    rule="no rollout of the last step has an answer or a score, or all checkpoints are at the same responses",
    source="",
    advice="give answers or scores with the prompts: alignment is not yet success",
)
def accuracy_unknown(course: Course, facts: Facts) -> Evidence | None:
    if "fixed" in facts.states:
        return Evidence("The responses are the same at every step, so that it is not known whether they become right.")
    if not math.isnan(course.values("accuracy")[-1]):
        return None
    return Evidence("Whether responses are right is not known: the verdict is about alignment alone.")


@qualifier(
    "truncation",
    rule=f"at least {TRUNCATED:.0%} of the last step's responses end at the length limit",
    source="arXiv 2604.08527",
    advice="a longer limit: what is cut is neither graded nor aligned at its end",
)
def truncation(course: Course, _: Facts) -> Evidence | None:
    rates = course.values("truncation_rate")
    if not rates[-1] >= TRUNCATED:
        return None
    last = course.at("truncation_rate", len(rates) - 1)
    text = f"{_percent(last)} of the responses are cut at the length limit at {_step(course, -1)}"
    return Evidence(f"{text}, {rates[0]:.0%} at {_step(course, 0)}.", {"last": _triple(last), "first": float(rates[0])})


@qualifier(
    "repetition",
    rule=f"at least {REPETITIVE:.0%} of the last step's responses of 64 tokens or more end in repetition: fewer than "
    "half of the runs of four tokens in their last 64 are distinct",
    source="arXiv 2604.08527, in tokens",
    advice="the ends of the responses: opd-probe tokens",
)
def repetition(_: Course, facts: Facts) -> Evidence | None:
    if not facts.repetition >= REPETITIVE:
        return None
    text = f"{facts.repetition:.0%} of the last step's responses of 64 tokens or more end in repetition."
    return Evidence(text, {"share": facts.repetition})


@qualifier(
    "length_drift",
    rule=f"the mean length changes by a factor of {DRIFT} or more along a trend whose interval leaves out 0",
    source="OpenClaw-RL#116, ms-swift#9526",
    advice="EOS and special tokens of both models (opd-probe doctor); curves by position",
)
def length_drift(course: Course, _: Facts) -> Evidence | None:
    if not _known(course, "response_length"):
        return None
    lengths, change = course.values("response_length"), course.trend("response_length")
    if not (max(lengths[-1], 1e-9) / max(lengths[0], 1e-9) >= DRIFT or lengths[0] / max(lengths[-1], 1e-9) >= DRIFT):
        return None
    if change.lo <= 0 <= change.hi:  # without an interval all prompts drift alike
        return None
    return _change_of(
        course, "response_length", change, f"Responses become {'longer' if change.value > 0 else 'shorter'}"
    )


@qualifier(
    "entropy_collapse",
    rule="the student's entropy falls to half of what it was or less, and is at most half of the teacher's at the same "
    "states",
    source="2604.13016 §5.2; OpenClaw-RL#116",
    advice="the mix of prompts and the temperature of sampling: what is never sampled is never corrected",
)
def entropy_collapse(course: Course, _: Facts) -> Evidence | None:
    if not (_known(course, "student_entropy") and _known(course, "teacher_entropy")):
        return None
    student, teacher = course.values("student_entropy"), course.values("teacher_entropy")
    change = course.trend("student_entropy")
    if not (student[-1] <= COLLAPSE * student[0] and student[-1] <= COLLAPSE * teacher[-1] and change.hi < 0):
        return None
    said = _change_of(course, "student_entropy", change, "The student's entropy collapses")
    return Evidence(f"{said.text[:-1]}; the teacher has {teacher[-1]:.3g} at the same states.", said.values)


@qualifier(
    "late_reversal",
    rule=f"the overlap ratio at the last step is {REVERSAL} or more below that of the best step, with an interval "
    "below 0",
    source="2604.13016 Fig. 12: the longest responses collapse late",
    advice="the checkpoints around the best step",
)
def late_reversal(course: Course, _: Facts) -> Evidence | None:
    overlap = course.values("overlap_ratio")
    if len(overlap) < FEW_STEPS or not np.isfinite(overlap).all() or np.argmax(overlap) == len(overlap) - 1:
        return None
    best = int(np.argmax(overlap))
    change = course.difference("overlap_ratio", best, len(overlap) - 1)
    if not (change.value <= -REVERSAL and change.hi < 0):
        return None
    return Evidence(
        f"The overlap ratio falls from {overlap[best]:.3f} at {_step(course, best)} to {overlap[-1]:.3f} at the last "
        f"step (by {_interval(change)}).",
        {"best_step": course.steps[best], "change": _triple(change)},
    )


@qualifier(
    "led_by_few_tokens",
    rule=f"the top 1 % of tokens hold more than {TOP_SHARE_LIMIT:.0%} of Σ|r| at the last step",
    source="ms-swift#6600",
    advice="these tokens (opd-probe tokens); clip r, or mask template tokens",
)
def led_by_few_tokens(_: Course, facts: Facts) -> Evidence | None:
    if not facts.top_share > TOP_SHARE_LIMIT:
        return None
    text = f"{facts.top_share:.0%} of Σ|r| lies in 1 % of the last step's tokens: its mean is theirs."
    return Evidence(text, {"top_1pct_signal_share": facts.top_share})


@qualifier(
    "retokenized",
    rule="a trace is of text that was tokenised again",
    source="tinker-cookbook#796",
    advice="rollouts with the sampled ids: text that is tokenised again has other states",
)
def retokenized(_: Course, facts: Facts) -> Evidence | None:
    other = [source for source in facts.token_sources if source != "sampled_ids"]
    if not other:
        return None
    n = len(facts.token_sources)
    return Evidence(
        f"{len(other)} of {n} traces are of text that was tokenised again.", {"traces": len(other), "of": n}
    )


@qualifier(
    "off_policy",
    rule="states are fixed ones or another's, or were sampled otherwise than both models are scored",
    source="2604.13016 §1: the states are those that the student visits",
    advice="rollouts of each checkpoint itself, at the temperature of the scores",
)
def off_policy(_: Course, facts: Facts) -> Evidence | None:
    fixed = sum(one not in ("own", "unknown") for one in facts.states)
    sampled = sorted({label for label in facts.sampling if label not in (None, AS_SCORED)})
    if not fixed and not sampled:
        return None
    parts = [f"{fixed} of {len(facts.states)} traces are at states that the checkpoint did not visit"] if fixed else []
    parts += (
        [f"responses were sampled otherwise than they are scored: {'; '.join(map(str, sampled))}"] if sampled else []
    )
    return Evidence(f"{'; '.join(parts)}.".capitalize(), {"fixed": fixed, "sampling": sampled})


@qualifier(
    "states_unknown",
    rule="a trace does not say whose states it is at",
    source="2604.13016 §1",
    advice="opd-probe overlap --ckpts, which records whose states they are",
)
def states_unknown(_: Course, facts: Facts) -> Evidence | None:
    n = sum(one == "unknown" for one in facts.states)
    text = f"{n} of {len(facts.states)} traces do not say whether the states are those that the checkpoint visited."
    return Evidence(text, {"traces": n}) if n else None


@qualifier(
    "mass_outside",
    rule="a model has more than 1 % of its mass outside the shared vocabulary at a step",
    source="2604.13016, as this package fixes it",
    advice="opd-probe doctor: the tokenizers",
)
def mass_outside(_: Course, facts: Facts) -> Evidence | None:
    text = f"Up to {facts.outside:.1%} of a model's probability lies outside the vocabulary that both share."
    return Evidence(text, {"mass_outside": facts.outside}) if facts.outside > 0.01 else None


@qualifier(
    "few_prompts",
    rule=f"fewer than {FEW_PROMPTS} prompts at a step",
    source="benchmarks/coverage.py: below that intervals are rough",
    advice="more prompts: intervals rest on prompts, not on tokens",
)
def few_prompts(course: Course, _: Facts) -> Evidence | None:
    n = min(course.n_prompts)
    return Evidence(f"{n} prompt{'s' if n != 1 else ''} only.", {"n_prompts": n}) if n < FEW_PROMPTS else None


@qualifier(
    "few_steps",
    rule=f"fewer than {FEW_STEPS} steps are measured",
    source="",
    advice="more checkpoints: two cannot show a turn between them",
)
def few_steps(course: Course, _: Facts) -> Evidence | None:
    n = len(course.steps)
    return Evidence(f"{n} step{'s' if n != 1 else ''} only.", {"n_steps": n}) if n < FEW_STEPS else None


def _interval(found: Found) -> str:
    return true_minus(with_interval(found.value, found.lo, found.hi))


def _change_of(course: Course, name: str, change: Found, said: str) -> Evidence:
    values = course.values(name)
    text = f"{said}: {values[0]:.3g} → {values[-1]:.3g}, trend {_interval(change)}."
    return Evidence(text, {"first": float(values[0]), "last": float(values[-1]), "trend": _triple(change)})
