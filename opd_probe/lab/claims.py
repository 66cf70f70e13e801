"""The paper's qualitative statements, each with a rule that decides whether it holds in miniature.

The rules were written before the runs that they judge, and are not changed afterwards. A statement that does not hold
stays here and is reported as false, with what was tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

import pandas as pd

from opd_probe.lab.experiments import SEEDS
from opd_probe.lab.reading import Tables, Value
from opd_probe.lab.task import STEP_LENGTH, STEPS
from opd_probe.lab.tried import TRIED

__all__ = ["CLAIMS", "Claim", "judge", "write_claims"]

Comparison = Literal["above", "below", "at least", "at most"]
Over = Literal["every seed", "the mean over seeds"]

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "above": lambda value, bound: value > bound,
    "below": lambda value, bound: value < bound,
    "at least": lambda value, bound: value >= bound,
    "at most": lambda value, bound: value <= bound,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper and its rule: ``quantity`` compared with ``bound``, on every seed or on their mean.

    Attributes:
        figure: of the paper.
        statement: what the paper's figure shows.
        measure: how the quantity is measured in the lab.
        quantity: the tables of a seed in, a value with its interval out.
    """

    name: str
    figure: str
    statement: str
    measure: str
    quantity: Callable[[Tables], Value]
    comparison: Comparison
    bound: float
    over: Over = "every seed"

    def keeps(self, value: float) -> bool:
        """Whether a value keeps the bound; NaN does not."""
        return _COMPARISONS[self.comparison](value, self.bound)

    def holds(self, values: Sequence[float]) -> bool:
        """Whether the statement holds, given the value of every seed."""
        if self.over == "every seed":
            return all(self.keeps(value) for value in values)
        return self.keeps(fmean(values))


_SF, _COMPATIBLE, _INCOMPATIBLE = "success_failure", "compatible teacher", "incompatible teacher"
_SECOND: Final = "second pair: "
_NOT_CUT: Final = "no cut"
_SUPPORTS: Final = ("student top-k", "overlap only", "symmetric difference")
_COLD, _PLAIN = "cold start, then OPD", "plain OPD"


def _shrinkage(t: Tables, run: str, metric: str) -> Value:
    return abs(t.start(_SF, run, metric)) / abs(t.end(_SF, run, metric))


def _between(t: Tables, experiment: str, first: str, second: str, metric: str, when: str = "end") -> Value:
    at = t.end if when == "end" else t.start
    return at(experiment, first, metric) - at(experiment, second, metric)


def _lowest(values: Sequence[Value]) -> Value:
    return min(values, key=lambda value: value.value)


def _highest(values: Sequence[Value]) -> Value:
    return max(values, key=lambda value: value.value)


def _recovered(t: Tables, family: str) -> Value:
    """NaN where a teacher is not ahead of the student: then there is no gap to recover."""
    experiment, values = "new_knowledge", []
    for kind, teacher in (("further training", "big-taught"), ("same pipeline", "big-student")):
        run, name = f"family {family}: {kind}", teacher if family == "A" else f"b-{teacher}"
        gap = t.model(experiment, name, "teacher") - t.start(experiment, run, "accuracy")
        recovery = t.model(experiment, run, "distilled", "gap_recovery")
        values.append(recovery if gap.value > 0 else Value(math.nan))
    return values[0] - values[1]


def _share_gained(t: Tables, failing: str, good: str) -> Value:
    """Accuracy gained in the failing run over that in the successful one; NaN where that one gained nothing."""
    gained = t.gain(_SF, good)
    return t.gain(_SF, failing) / gained if gained.value > 0 else Value(math.nan)


def _taught(t: Tables, family: str) -> Value:
    gains = (t.gain("new_knowledge", f"family {family}: {kind}") for kind in ("further training", "same pipeline"))
    taught, same = gains
    return taught - same


def _paths(t: Tables) -> Value:
    own, sibling = (
        t.curve("reverse_distillation", run, "accuracy") for run in ("own earlier checkpoint", "bigger sibling")
    )
    return _highest([abs(own[step] - sibling[step]) for step in own])


def _left(losses: Sequence[float]) -> float:
    """The share of the first three steps' mean that the last three still have."""
    return fmean(losses[-3:]) / fmean(losses[:3])


def _at_the_start(t: Tables, quantity: str) -> Value:
    failing, good = (fmean(t.log(_SF, run, quantity)[:3]) for run in (_INCOMPATIBLE, _COMPATIBLE))
    return Value(failing / good)


def _unsteadiness(values: Sequence[float]) -> float:
    half = values[len(values) // 2 :]
    return stdev(half) / fmean(half)


def _accuracies(t: Tables, runs: Sequence[str]) -> list[Value]:
    return [t.end("sampled_vs_topk", run, "accuracy") for run in runs]


def _entropy_of_step(t: Tables, step: int, number: int) -> Value:
    first = STEP_LENGTH * number
    return t.along("response_length", _NOT_CUT, "student_entropy", step, first, first + STEP_LENGTH - 1)


CLAIMS: Final = (
    # One student, two teachers of similar accuracy.
    Claim(
        "teachers_are_similar",
        "3",
        "the two teachers have similar scores",
        "|accuracy of the more distant teacher − that of the closer one|, each on its own responses",
        lambda t: abs(
            t.model("compatibility", "distant-teacher", "teacher")
            - t.model("compatibility", "compatible-teacher", "teacher")
        ),
        "at most",
        0.07,
    ),
    Claim(
        "closer_starts_higher",
        "2",
        "the teacher of the closer thinking pattern starts with the higher overlap ratio",
        "overlap ratio before the first step, closer − more distant teacher",
        lambda t: _between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio", "start"),
        "above",
        0.0,
    ),
    Claim(
        "overlaps_meet",
        "2",
        "the overlap ratios of both runs approach each other",
        "|difference of the overlap ratios| at the end over that at the start",
        lambda t: (
            abs(_between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio"))
            / abs(_between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio", "start"))
        ),
        "at most",
        0.5,
    ),
    Claim(
        "accuracy_gap_stays",
        "2, 17",
        "the closer teacher makes the better student, although the overlaps meet",
        "accuracy at the end, closer − more distant teacher",
        lambda t: _between(t, "compatibility", "closer teacher", "more distant teacher", "accuracy"),
        "at least",
        0.05,
    ),
    # New knowledge.
    Claim(
        "new_knowledge_a",
        "4",
        "a teacher that was trained further teaches more than the bigger one of the same pipeline (first family)",
        "accuracy gained, further training − same pipeline, family A",
        lambda t: _taught(t, "A"),
        "at least",
        0.1,
    ),
    Claim(
        "new_knowledge_b",
        "4",
        "a teacher that was trained further teaches more than the bigger one of the same pipeline (second family)",
        "accuracy gained, further training − same pipeline, family B",
        lambda t: _taught(t, "B"),
        "at least",
        0.1,
    ),
    Claim(
        "recovery_a",
        "1, 4",
        "the gap to the teacher that was trained further is recovered to a larger share (first family)",
        "gap recovery, further training − same pipeline, family A",
        lambda t: _recovered(t, "A"),
        "above",
        0.0,
        "the mean over seeds",
    ),
    Claim(
        "recovery_b",
        "1, 4",
        "the gap to the teacher that was trained further is recovered to a larger share (second family)",
        "gap recovery, further training − same pipeline, family B",
        lambda t: _recovered(t, "B"),
        "above",
        0.0,
        "the mean over seeds",
    ),
    # Reverse distillation.
    Claim(
        "reverse_own",
        "5",
        "distilled from its own earlier checkpoint, an improved student falls back to that level",
        "accuracy at the end − own accuracy of the earlier checkpoint",
        lambda t: (
            t.end("reverse_distillation", "own earlier checkpoint", "accuracy")
            - t.model("reverse_distillation", "student", "teacher")
        ),
        "at most",
        0.1,
    ),
    Claim(
        "reverse_sibling",
        "5",
        "distilled from a bigger sibling of its earlier checkpoint, it falls to that level as well",
        "accuracy at the end − own accuracy of the earlier checkpoint",
        lambda t: (
            t.end("reverse_distillation", "bigger sibling", "accuracy")
            - t.model("reverse_distillation", "student", "teacher")
        ),
        "at most",
        0.15,
    ),
    Claim(
        "reverse_same_path",
        "5",
        "both fall on nearly the same path",
        "the largest |difference of the two accuracies| at a measured step",
        _paths,
        "at most",
        0.12,
    ),
    Claim(
        "reverse_teachers_alike",
        "5",
        "the two teachers can hardly be told apart at the student's states",
        "reverse KL of the two teachers at the last states over that of student and own teacher at the first",
        lambda t: (
            t.pair("reverse_distillation", "own earlier checkpoint", "reverse_kl")
            / t.start("reverse_distillation", "own earlier checkpoint", "reverse_kl")
        ),
        "at most",
        0.25,
    ),
    # Success and failure.
    Claim(
        "accuracy_separates",
        "6",
        "the successful run learns, the failing one hardly does",
        "accuracy gained in the failing run over that gained in the successful one",
        lambda t: _share_gained(t, _INCOMPATIBLE, _COMPATIBLE),
        "at most",
        1 / 3,
    ),
    Claim(
        "overlap_rises",
        "1, 6",
        "the overlap ratio rises in the successful run",
        "overlap ratio, end − start",
        lambda t: t.gain(_SF, _COMPATIBLE, "overlap_ratio"),
        "at least",
        0.03,
    ),
    Claim(
        "overlap_stays_flat",
        "1, 6",
        "the overlap ratio stays flat in the failing run",
        "change of the overlap ratio in the failing run over that in the successful one",
        lambda t: t.gain(_SF, _INCOMPATIBLE, "overlap_ratio") / t.gain(_SF, _COMPATIBLE, "overlap_ratio"),
        "at most",
        0.5,
    ),
    Claim(
        "advantage_vanishes",
        "6",
        "the overlap advantage goes to 0 in the successful run",
        "|overlap advantage| at the start over at the end",
        lambda t: _shrinkage(t, _COMPATIBLE, "overlap_advantage"),
        "at least",
        4.0,
    ),
    Claim(
        "advantage_stays",
        "6",
        "the overlap advantage stays flat in the failing run",
        "|overlap advantage| at the start over at the end",
        lambda t: _shrinkage(t, _INCOMPATIBLE, "overlap_advantage"),
        "at most",
        2.0,
    ),
    Claim(
        "entropy_gap_closes",
        "6",
        "the entropy gap closes in the successful run",
        "entropy gap at the start over at the end",
        lambda t: _shrinkage(t, _COMPATIBLE, "entropy_gap"),
        "at least",
        2.5,
    ),
    Claim(
        "entropy_gap_stays",
        "6",
        "the entropy gap stays in the failing run",
        "entropy gap at the start over at the end",
        lambda t: _shrinkage(t, _INCOMPATIBLE, "entropy_gap"),
        "at most",
        1.6,
    ),
    Claim(
        "second_pair_accuracy",
        "20",
        "a second pair separates in the same way: accuracy",
        "accuracy gained in the failing run over that gained in the successful one, second pair",
        lambda t: _share_gained(t, _SECOND + _INCOMPATIBLE, _SECOND + _COMPATIBLE),
        "at most",
        1 / 3,
    ),
    Claim(
        "second_pair_advantage",
        "20",
        "a second pair separates in the same way: overlap advantage",
        "|overlap advantage| at the end, failing over successful, second pair",
        lambda t: (
            abs(t.end(_SF, _SECOND + _INCOMPATIBLE, "overlap_advantage"))
            / abs(t.end(_SF, _SECOND + _COMPATIBLE, "overlap_advantage"))
        ),
        "at least",
        2.0,
    ),
    Claim(
        "second_pair_overlap",
        "20",
        "a second pair separates in the same way: overlap ratio",
        "overlap ratio, end − start, successful − failing, second pair",
        lambda t: (
            t.gain(_SF, _SECOND + _COMPATIBLE, "overlap_ratio") - t.gain(_SF, _SECOND + _INCOMPATIBLE, "overlap_ratio")
        ),
        "above",
        0.0,
    ),
    Claim(
        "mass_throughout",
        "18",
        "the overlap set holds more than 97 % of the student's mass throughout the successful run",
        "the lowest student overlap mass at a measured step",
        lambda t: _lowest(list(t.curve(_SF, _COMPATIBLE, "student_overlap_mass").values())),
        "at least",
        0.97,
    ),
    Claim(
        "mass_at_the_end",
        "18",
        "the overlap set holds more than 97 % of both models' mass at the end of the successful run",
        "the lower of student and teacher overlap mass at the end",
        lambda t: _lowest([t.end(_SF, _COMPATIBLE, f"{side}_overlap_mass") for side in ("student", "teacher")]),
        "at least",
        0.97,
    ),
    Claim(
        "failing_loss_is_smaller",
        "19",
        "the failing run starts with the smaller loss",
        "mean loss of the first three steps, failing over successful",
        lambda t: _at_the_start(t, "loss"),
        "below",
        1.0,
    ),
    Claim(
        "failing_gradient_is_smaller",
        "19",
        "the failing run starts with the smaller gradient",
        "mean gradient norm of the first three steps, failing over successful",
        lambda t: _at_the_start(t, "grad_norm"),
        "below",
        1.0,
    ),
    Claim(
        "failing_loss_stays",
        "19",
        "the loss of the failing run changes little, that of the successful run falls",
        "share of the loss that is left at the end (means of three steps), failing over successful",
        lambda t: Value(_left(t.log(_SF, _INCOMPATIBLE, "loss")) / _left(t.log(_SF, _COMPATIBLE, "loss"))),
        "at least",
        3.0,
    ),
    Claim(
        "probability_gap_stays",
        "19",
        "the probability gap at the most extreme token stays in the failing run and closes in the successful one",
        "|extreme advantage gap| at the end over at the start, failing − successful",
        lambda t: (
            abs(t.end(_SF, _INCOMPATIBLE, "extreme_advantage_gap"))
            / abs(t.start(_SF, _INCOMPATIBLE, "extreme_advantage_gap"))
            - abs(t.end(_SF, _COMPATIBLE, "extreme_advantage_gap"))
            / abs(t.start(_SF, _COMPATIBLE, "extreme_advantage_gap"))
        ),
        "above",
        0.0,
    ),
    # What the loss looks at.
    Claim(
        "overlap_alone_suffices",
        "7",
        "the loss on the overlap alone does as well as on the student's top tokens",
        "accuracy at the end, overlap only − student top-k",
        lambda t: _between(t, "supports", _SUPPORTS[1], _SUPPORTS[0], "accuracy"),
        "at least",
        -0.05,
    ),
    Claim(
        "symmetric_difference_is_weaker",
        "7",
        "the loss on the symmetric difference is weaker",
        "accuracy at the end, symmetric difference − student top-k",
        lambda t: _between(t, "supports", _SUPPORTS[2], _SUPPORTS[0], "accuracy"),
        "at most",
        -0.1,
    ),
    Claim(
        "symmetric_difference_lowers_overlap",
        "7",
        "the loss on the symmetric difference first lowers the overlap ratio",
        "the lowest overlap ratio at a measured step − that at the start",
        lambda t: (
            _lowest(list(t.curve("supports", _SUPPORTS[2], "overlap_ratio").values()))
            - t.start("supports", _SUPPORTS[2], "overlap_ratio")
        ),
        "below",
        0.0,
    ),
    Claim(
        "overlap_advantages_agree",
        "7",
        "the overlap advantages of the runs on the overlap and on the student's top tokens cannot be told apart",
        "|difference of the overlap advantages| at the end over |overlap advantage| at the start",
        lambda t: (
            abs(_between(t, "supports", _SUPPORTS[1], _SUPPORTS[0], "overlap_advantage"))
            / abs(t.start("supports", _SUPPORTS[0], "overlap_advantage"))
        ),
        "at most",
        0.1,
    ),
    # Cold start.
    Claim(
        "cold_start_helps",
        "8",
        "after a cold start distillation ends more accurate than without",
        "accuracy at the end, cold start − plain",
        lambda t: _between(t, "cold_start", _COLD, _PLAIN, "accuracy"),
        "at least",
        0.05,
    ),
    Claim(
        "cold_start_overlap",
        "8",
        "after a cold start distillation begins with the higher overlap ratio",
        "overlap ratio before the first step, cold start − plain",
        lambda t: _between(t, "cold_start", _COLD, _PLAIN, "overlap_ratio", "start"),
        "above",
        0.0,
    ),
    Claim(
        "cold_start_entropy_gap",
        "8",
        "after a cold start the entropy gap is smaller throughout",
        "the largest difference of the entropy gaps at a measured step, cold start − plain",
        lambda t: _highest(
            [
                gap - t.curve("cold_start", _PLAIN, "entropy_gap")[step]
                for step, gap in t.curve("cold_start", _COLD, "entropy_gap").items()
            ]
        ),
        "below",
        0.0,
    ),
    Claim(
        "cold_start_mass",
        "21",
        "after a cold start the overlap holds more of the student's mass",
        "student overlap mass at the end, cold start − plain",
        lambda t: _between(t, "cold_start", _COLD, _PLAIN, "student_overlap_mass"),
        "above",
        0.0,
    ),
    # Prompts.
    Claim(
        "template_accuracy",
        "9",
        "the teacher's own prompt template makes the better student",
        "accuracy at the end, teacher's template − other template",
        lambda t: _between(t, "prompt_template", "teacher's template", "other template", "accuracy"),
        "at least",
        0.03,
    ),
    Claim(
        "template_overlap",
        "9, 22",
        "the teacher's own prompt template ends with the higher overlap ratio",
        "overlap ratio at the end, teacher's template − other template",
        lambda t: _between(t, "prompt_template", "teacher's template", "other template", "overlap_ratio"),
        "above",
        0.0,
    ),
    Claim(
        "content_accuracy",
        "10",
        "the teacher's own problems make the better student",
        "accuracy at the end on held-out problems, teacher's own problems − others",
        lambda t: _between(t, "prompt_content", "teacher's own problems", "other problems", "accuracy"),
        "above",
        0.0,
        "the mean over seeds",
    ),
    Claim(
        "content_overlap",
        "10",
        "on the teacher's own problems the overlap ratio is lower",
        "overlap ratio at the end, teacher's own problems − others",
        lambda t: _between(t, "prompt_content", "teacher's own problems", "other problems", "overlap_ratio"),
        "below",
        0.0,
    ),
    Claim(
        "content_mass",
        "10",
        "on the teacher's own problems the overlap holds more of the student's mass",
        "student overlap mass at the end, teacher's own problems − others",
        lambda t: _between(t, "prompt_content", "teacher's own problems", "other problems", "student_overlap_mass"),
        "above",
        0.0,
    ),
    Claim(
        "content_entropy",
        "10",
        "on the teacher's own problems the student's entropy falls lower",
        "student entropy at the end, teacher's own problems − others",
        lambda t: _between(t, "prompt_content", "teacher's own problems", "other problems", "student_entropy"),
        "below",
        0.0,
    ),
    # Response length.
    Claim(
        "short_responses_teach_less",
        "11a",
        "the shortest responses teach least",
        "accuracy at the end, cut after 5 tokens − the lowest of the others",
        lambda t: (
            t.end("response_length", "5 tokens", "accuracy")
            - _lowest([t.end("response_length", run, "accuracy") for run in ("10 tokens", "15 tokens", _NOT_CUT)])
        ),
        "below",
        0.0,
    ),
    Claim(
        "long_responses_hurt",
        "11a",
        "a medium length is better than the longest",
        "accuracy at the end, the better of the cuts after 10 and 15 tokens − no cut",
        lambda t: (
            _highest([t.end("response_length", run, "accuracy") for run in ("10 tokens", "15 tokens")])
            - t.end("response_length", _NOT_CUT, "accuracy")
        ),
        "above",
        0.0,
    ),
    Claim(
        "teacher_gain_falls",
        "11b",
        "what a teacher adds to the student's beginning falls with its depth",
        "accuracy gained by the compatible teacher's continuation, from the prompt − from the deepest prefix",
        lambda t: t.gains(_COMPATIBLE)[0] - t.gains(_COMPATIBLE)[-1],
        "at least",
        0.1,
    ),
    Claim(
        "teacher_gain_falls_steadily",
        "11b",
        "it falls at every depth",
        "the largest rise of the gain from one depth to the next",
        lambda t: _highest([b - a for a, b in zip(t.gains(_COMPATIBLE)[:-1], t.gains(_COMPATIBLE)[1:], strict=True)]),
        "below",
        0.0,
    ),
    Claim(
        "entropy_grows_along_the_response",
        "13, 23",
        "high entropy is found at the end of the responses first",
        "student entropy in the last step of a solution − in the first, before the first step of training",
        lambda t: _entropy_of_step(t, 0, STEPS - 1) - _entropy_of_step(t, 0, 0),
        "above",
        0.0,
    ),
    # Rewards.
    Claim(
        "reward_separates",
        "14",
        "the sequence mean reward of a good teacher separates correct from incorrect responses",
        "AUROC before the first step, compatible teacher",
        lambda t: t.start("reward", _COMPATIBLE, "reward_auroc"),
        "at least",
        0.6,
    ),
    Claim(
        "failing_reward_separates",
        "14",
        "that of a failing teacher does so as well",
        "AUROC before the first step, incompatible teacher",
        lambda t: t.start("reward", _INCOMPATIBLE, "reward_auroc"),
        "at least",
        0.6,
    ),
    # How many tokens.
    Claim(
        "one_token_is_worst",
        "15",
        "k = 1 is worst",
        "accuracy at the end, k = 1 − the lowest of the others",
        lambda t: (
            _accuracies(t, ["k = 1"])[0] - _lowest(_accuracies(t, ["sampled token", "k = 4", "k = 16", "k = 64"]))
        ),
        "below",
        0.0,
    ),
    Claim(
        "one_token_is_unsteady",
        "16",
        "k = 1 is the least stable",
        "deviation of the gradient norm over its mean, second half of training, k = 1 over the highest of 4, 16, 64",
        lambda t: Value(
            _unsteadiness(t.log("sampled_vs_topk", "k = 1", "grad_norm"))
            / max(_unsteadiness(t.log("sampled_vs_topk", run, "grad_norm")) for run in ("k = 4", "k = 16", "k = 64"))
        ),
        "above",
        1.0,
    ),
    Claim(
        "more_tokens_are_alike",
        "15",
        "k = 4, 16 and 64 do equally well",
        "the highest − the lowest accuracy at the end of k = 4, 16, 64",
        lambda t: (
            _highest(_accuracies(t, ["k = 4", "k = 16", "k = 64"]))
            - _lowest(_accuracies(t, ["k = 4", "k = 16", "k = 64"]))
        ),
        "at most",
        0.1,
    ),
    Claim(
        "sampled_token_suffices",
        "15",
        "the sampled token does about as well as the top 16",
        "accuracy at the end, sampled token − k = 16",
        lambda t: _accuracies(t, ["sampled token"])[0] - _accuracies(t, ["k = 16"])[0],
        "at least",
        -0.1,
    ),
)
"""Every claim, in the order of the experiments."""


def judge(tables: Mapping[str, pd.DataFrame], seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Every claim on the aggregated tables: its rule, its value on every seed, and whether it holds.

    A claim whose rows are not there yet has null values and does not hold.
    """
    return [_judged(claim, {seed: Tables(tables, seed) for seed in seeds}) for claim in CLAIMS]


def _judged(claim: Claim, seeds: Mapping[int, Tables]) -> dict[str, Any]:
    values = {seed: _measured(claim, tables) for seed, tables in seeds.items()}
    holds = claim.holds([value.value for value in values.values()])
    return {
        "name": claim.name,
        "figure": claim.figure,
        "statement": claim.statement,
        "measure": claim.measure,
        "rule": f"{claim.comparison} {claim.bound:.4g} on {claim.over}",
        "seeds": [
            {"seed": seed}
            | {end: _rounded(getattr(value, end)) for end in ("value", "lo", "hi")}
            | {"holds": claim.keeps(value.value)}
            for seed, value in values.items()
        ],
        "holds": holds,
        "tried": "" if holds else TRIED.get(claim.name, ""),
    }


def _measured(claim: Claim, tables: Tables) -> Value:
    try:
        return claim.quantity(tables)
    except LookupError:
        return Value(math.nan)


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def write_claims(tables: Mapping[str, pd.DataFrame], path: Path, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Judge every claim and write the verdicts as JSON; returns them."""
    verdicts = judge(tables, seeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"claims": verdicts}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return verdicts
