"""Success and failure, and what the loss looks at (section 4)."""

from __future__ import annotations

from typing import Final

from opd_probe.lab.claims.claim import Claim
from opd_probe.lab.claims.quantities import (
    COMPATIBLE,
    INCOMPATIBLE,
    SECOND,
    SUCCESS_FAILURE,
    SUPPORTS,
    at_the_start,
    between,
    left,
    lowest,
    share_gained,
    shrinkage,
)
from opd_probe.lab.reading import Value

CLAIMS: Final = (
    # Success and failure.
    Claim(
        "accuracy_separates",
        "6",
        "the successful run learns, the failing one hardly does",
        "accuracy gained in the failing run over that gained in the successful one",
        lambda t: share_gained(t, INCOMPATIBLE, COMPATIBLE),
        "at most",
        1 / 3,
    ),
    Claim(
        "overlap_rises",
        "1, 6",
        "the overlap ratio rises in the successful run",
        "overlap ratio, end − start",
        lambda t: t.gain(SUCCESS_FAILURE, COMPATIBLE, "overlap_ratio"),
        "at least",
        0.03,
    ),
    Claim(
        "overlap_stays_flat",
        "1, 6",
        "the overlap ratio stays flat in the failing run",
        "change of the overlap ratio in the failing run over that in the successful one",
        lambda t: (
            t.gain(SUCCESS_FAILURE, INCOMPATIBLE, "overlap_ratio")
            / t.gain(SUCCESS_FAILURE, COMPATIBLE, "overlap_ratio")
        ),
        "at most",
        0.5,
    ),
    Claim(
        "advantage_vanishes",
        "6",
        "the overlap advantage goes to 0 in the successful run",
        "|overlap advantage| at the start over at the end",
        lambda t: shrinkage(t, COMPATIBLE, "overlap_advantage"),
        "at least",
        4.0,
    ),
    Claim(
        "advantage_stays",
        "6",
        "the overlap advantage stays flat in the failing run",
        "|overlap advantage| at the start over at the end",
        lambda t: shrinkage(t, INCOMPATIBLE, "overlap_advantage"),
        "at most",
        2.0,
    ),
    Claim(
        "entropy_gap_closes",
        "6",
        "the entropy gap closes in the successful run",
        "entropy gap at the start over at the end",
        lambda t: shrinkage(t, COMPATIBLE, "entropy_gap"),
        "at least",
        2.5,
    ),
    Claim(
        "entropy_gap_stays",
        "6",
        "the entropy gap stays in the failing run",
        "entropy gap at the start over at the end",
        lambda t: shrinkage(t, INCOMPATIBLE, "entropy_gap"),
        "at most",
        1.6,
    ),
    Claim(
        "second_pair_accuracy",
        "20",
        "a second pair separates in the same way: accuracy",
        "accuracy gained in the failing run over that gained in the successful one, second pair",
        lambda t: share_gained(t, SECOND + INCOMPATIBLE, SECOND + COMPATIBLE),
        "at most",
        1 / 3,
    ),
    Claim(
        "second_pair_advantage",
        "20",
        "a second pair separates in the same way: overlap advantage",
        "|overlap advantage| at the end, failing over successful, second pair",
        lambda t: (
            abs(t.end(SUCCESS_FAILURE, SECOND + INCOMPATIBLE, "overlap_advantage"))
            / abs(t.end(SUCCESS_FAILURE, SECOND + COMPATIBLE, "overlap_advantage"))
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
            t.gain(SUCCESS_FAILURE, SECOND + COMPATIBLE, "overlap_ratio")
            - t.gain(SUCCESS_FAILURE, SECOND + INCOMPATIBLE, "overlap_ratio")
        ),
        "above",
        0.0,
    ),
    Claim(
        "mass_throughout",
        "18",
        "the overlap set holds more than 97 % of the student's mass throughout the successful run",
        "the lowest student overlap mass at a measured step",
        lambda t: lowest(list(t.curve(SUCCESS_FAILURE, COMPATIBLE, "student_overlap_mass").values())),
        "at least",
        0.97,
    ),
    Claim(
        "mass_at_the_end",
        "18",
        "the overlap set holds more than 97 % of both models' mass at the end of the successful run",
        "the lower of student and teacher overlap mass at the end",
        lambda t: lowest(
            [t.end(SUCCESS_FAILURE, COMPATIBLE, f"{side}_overlap_mass") for side in ("student", "teacher")]
        ),
        "at least",
        0.97,
    ),
    Claim(
        "failing_loss_is_smaller",
        "19",
        "the failing run starts with the smaller loss",
        "mean loss of the first three steps, failing over successful",
        lambda t: at_the_start(t, "loss"),
        "below",
        1.0,
    ),
    Claim(
        "failing_gradient_is_smaller",
        "19",
        "the failing run starts with the smaller gradient",
        "mean gradient norm of the first three steps, failing over successful",
        lambda t: at_the_start(t, "grad_norm"),
        "below",
        1.0,
    ),
    Claim(
        "failing_loss_stays",
        "19",
        "the loss of the failing run changes little, that of the successful run falls",
        "share of the loss that is left at the end (means of three steps), failing over successful",
        lambda t: Value(
            left(t.log(SUCCESS_FAILURE, INCOMPATIBLE, "loss")) / left(t.log(SUCCESS_FAILURE, COMPATIBLE, "loss"))
        ),
        "at least",
        3.0,
    ),
    Claim(
        "probability_gap_stays",
        "19",
        "the probability gap at the most extreme token stays in the failing run and closes in the successful one",
        "|extreme advantage gap| at the end over at the start, failing − successful",
        lambda t: (
            abs(t.end(SUCCESS_FAILURE, INCOMPATIBLE, "extreme_advantage_gap"))
            / abs(t.start(SUCCESS_FAILURE, INCOMPATIBLE, "extreme_advantage_gap"))
            - abs(t.end(SUCCESS_FAILURE, COMPATIBLE, "extreme_advantage_gap"))
            / abs(t.start(SUCCESS_FAILURE, COMPATIBLE, "extreme_advantage_gap"))
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
        lambda t: between(t, "supports", SUPPORTS[1], SUPPORTS[0], "accuracy"),
        "at least",
        -0.05,
    ),
    Claim(
        "symmetric_difference_is_weaker",
        "7",
        "the loss on the symmetric difference is weaker",
        "accuracy at the end, symmetric difference − student top-k",
        lambda t: between(t, "supports", SUPPORTS[2], SUPPORTS[0], "accuracy"),
        "at most",
        -0.1,
    ),
    Claim(
        "symmetric_difference_lowers_overlap",
        "7",
        "the loss on the symmetric difference first lowers the overlap ratio",
        "the lowest overlap ratio at a measured step − that at the start",
        lambda t: (
            lowest(list(t.curve("supports", SUPPORTS[2], "overlap_ratio").values()))
            - t.start("supports", SUPPORTS[2], "overlap_ratio")
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
            abs(between(t, "supports", SUPPORTS[1], SUPPORTS[0], "overlap_advantage"))
            / abs(t.start("supports", SUPPORTS[0], "overlap_advantage"))
        ),
        "at most",
        0.1,
    ),
)
