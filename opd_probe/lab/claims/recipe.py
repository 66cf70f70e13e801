"""Cold start, prompts, response length, rewards, number of tokens (sections 5 and 6)."""

from __future__ import annotations

from typing import Final

from opd_probe.lab.claims.claim import Claim
from opd_probe.lab.claims.quantities import (
    COLD,
    COMPATIBLE,
    INCOMPATIBLE,
    NOT_CUT,
    PLAIN,
    accuracies,
    between,
    entropy_of_step,
    highest,
    lowest,
    unsteadiness,
)
from opd_probe.lab.reading import Value
from opd_probe.lab.task import STEPS

CLAIMS: Final = (
    # Cold start.
    Claim(
        "cold_start_helps",
        "8",
        "after a cold start distillation ends more accurate than without",
        "accuracy at the end, cold start − plain",
        lambda t: between(t, "cold_start", COLD, PLAIN, "accuracy"),
        "at least",
        0.05,
    ),
    Claim(
        "cold_start_overlap",
        "8",
        "after a cold start distillation begins with the higher overlap ratio",
        "overlap ratio before the first step, cold start − plain",
        lambda t: between(t, "cold_start", COLD, PLAIN, "overlap_ratio", "start"),
        "above",
        0.0,
    ),
    Claim(
        "cold_start_entropy_gap",
        "8",
        "after a cold start the entropy gap is smaller throughout",
        "the largest difference of the entropy gaps at a measured step, cold start − plain",
        lambda t: highest(
            [
                gap - t.curve("cold_start", PLAIN, "entropy_gap")[step]
                for step, gap in t.curve("cold_start", COLD, "entropy_gap").items()
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
        lambda t: between(t, "cold_start", COLD, PLAIN, "student_overlap_mass"),
        "above",
        0.0,
    ),
    # Prompts.
    Claim(
        "template_accuracy",
        "9",
        "the teacher's own prompt template makes the better student",
        "accuracy at the end, teacher's template − other template",
        lambda t: between(t, "prompt_template", "teacher's template", "other template", "accuracy"),
        "at least",
        0.03,
    ),
    Claim(
        "template_overlap",
        "9, 22",
        "the teacher's own prompt template ends with the higher overlap ratio",
        "overlap ratio at the end, teacher's template − other template",
        lambda t: between(t, "prompt_template", "teacher's template", "other template", "overlap_ratio"),
        "above",
        0.0,
    ),
    Claim(
        "content_accuracy",
        "10",
        "the teacher's own problems make the better student",
        "accuracy at the end on held-out problems, teacher's own problems − others",
        lambda t: between(t, "prompt_content", "teacher's own problems", "other problems", "accuracy"),
        "above",
        0.0,
        "the mean over seeds",
    ),
    Claim(
        "content_overlap",
        "10",
        "on the teacher's own problems the overlap ratio is lower",
        "overlap ratio at the end, teacher's own problems − others",
        lambda t: between(t, "prompt_content", "teacher's own problems", "other problems", "overlap_ratio"),
        "below",
        0.0,
    ),
    Claim(
        "content_mass",
        "10",
        "on the teacher's own problems the overlap holds more of the student's mass",
        "student overlap mass at the end, teacher's own problems − others",
        lambda t: between(t, "prompt_content", "teacher's own problems", "other problems", "student_overlap_mass"),
        "above",
        0.0,
    ),
    Claim(
        "content_entropy",
        "10",
        "on the teacher's own problems the student's entropy falls lower",
        "student entropy at the end, teacher's own problems − others",
        lambda t: between(t, "prompt_content", "teacher's own problems", "other problems", "student_entropy"),
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
            - lowest([t.end("response_length", run, "accuracy") for run in ("10 tokens", "15 tokens", NOT_CUT)])
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
            highest([t.end("response_length", run, "accuracy") for run in ("10 tokens", "15 tokens")])
            - t.end("response_length", NOT_CUT, "accuracy")
        ),
        "above",
        0.0,
    ),
    Claim(
        "teacher_gain_falls",
        "11b",
        "what a teacher adds to the student's beginning falls with its depth",
        "accuracy gained by the compatible teacher's continuation, from the prompt − from the deepest prefix",
        lambda t: t.gains(COMPATIBLE)[0] - t.gains(COMPATIBLE)[-1],
        "at least",
        0.1,
    ),
    Claim(
        "teacher_gain_falls_steadily",
        "11b",
        "it falls at every depth",
        "the largest rise of the gain from one depth to the next",
        lambda t: highest([b - a for a, b in zip(t.gains(COMPATIBLE)[:-1], t.gains(COMPATIBLE)[1:], strict=True)]),
        "below",
        0.0,
    ),
    Claim(
        "entropy_grows_along_the_response",
        "13, 23",
        "high entropy is found at the end of the responses first",
        "student entropy in the last step of a solution − in the first, before the first step of training",
        lambda t: entropy_of_step(t, 0, STEPS - 1) - entropy_of_step(t, 0, 0),
        "above",
        0.0,
    ),
    # Rewards.
    Claim(
        "reward_separates",
        "14",
        "the sequence mean reward of a good teacher separates correct from incorrect responses",
        "AUROC before the first step, compatible teacher",
        lambda t: t.start("reward", COMPATIBLE, "reward_auroc"),
        "at least",
        0.6,
    ),
    Claim(
        "failing_reward_separates",
        "14",
        "that of a failing teacher does so as well",
        "AUROC before the first step, incompatible teacher",
        lambda t: t.start("reward", INCOMPATIBLE, "reward_auroc"),
        "at least",
        0.6,
    ),
    # How many tokens.
    Claim(
        "one_token_is_worst",
        "15",
        "k = 1 is worst",
        "accuracy at the end, k = 1 − the lowest of the others",
        lambda t: accuracies(t, ["k = 1"])[0] - lowest(accuracies(t, ["sampled token", "k = 4", "k = 16", "k = 64"])),
        "below",
        0.0,
    ),
    Claim(
        "one_token_is_unsteady",
        "16",
        "k = 1 is the least stable",
        "deviation of the gradient norm over its mean, second half of training, k = 1 over the highest of 4, 16, 64",
        lambda t: Value(
            unsteadiness(t.log("sampled_vs_topk", "k = 1", "grad_norm"))
            / max(unsteadiness(t.log("sampled_vs_topk", run, "grad_norm")) for run in ("k = 4", "k = 16", "k = 64"))
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
            highest(accuracies(t, ["k = 4", "k = 16", "k = 64"])) - lowest(accuracies(t, ["k = 4", "k = 16", "k = 64"]))
        ),
        "at most",
        0.1,
    ),
    Claim(
        "sampled_token_suffices",
        "15",
        "the sampled token does about as well as the top 16",
        "accuracy at the end, sampled token − k = 16",
        lambda t: accuracies(t, ["sampled token"])[0] - accuracies(t, ["k = 16"])[0],
        "at least",
        -0.1,
    ),
)
