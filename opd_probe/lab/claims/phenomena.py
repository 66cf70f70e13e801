"""Teachers of similar accuracy, new knowledge, reverse distillation (sections 3.1-3.3)."""

from __future__ import annotations

from typing import Final

from opd_probe.lab.claims.claim import Claim
from opd_probe.lab.claims.quantities import between, paths, recovered, taught

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
        lambda t: between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio", "start"),
        "above",
        0.0,
    ),
    Claim(
        "overlaps_meet",
        "2",
        "the overlap ratios of both runs approach each other",
        "|difference of the overlap ratios| at the end over that at the start",
        lambda t: (
            abs(between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio"))
            / abs(between(t, "compatibility", "closer teacher", "more distant teacher", "overlap_ratio", "start"))
        ),
        "at most",
        0.5,
    ),
    Claim(
        "accuracy_gap_stays",
        "2, 17",
        "the closer teacher makes the better student, although the overlaps meet",
        "accuracy at the end, closer − more distant teacher",
        lambda t: between(t, "compatibility", "closer teacher", "more distant teacher", "accuracy"),
        "at least",
        0.05,
    ),
    # New knowledge.
    Claim(
        "new_knowledge_a",
        "4",
        "a teacher that was trained further teaches more than the bigger one of the same pipeline (first family)",
        "accuracy gained, further training − same pipeline, family A",
        lambda t: taught(t, "A"),
        "at least",
        0.1,
    ),
    Claim(
        "new_knowledge_b",
        "4",
        "a teacher that was trained further teaches more than the bigger one of the same pipeline (second family)",
        "accuracy gained, further training − same pipeline, family B",
        lambda t: taught(t, "B"),
        "at least",
        0.1,
    ),
    Claim(
        "recovery_a",
        "1, 4",
        "the gap to the teacher that was trained further is recovered to a larger share (first family)",
        "gap recovery, further training − same pipeline, family A",
        lambda t: recovered(t, "A"),
        "above",
        0.0,
        "the mean over seeds",
    ),
    Claim(
        "recovery_b",
        "1, 4",
        "the gap to the teacher that was trained further is recovered to a larger share (second family)",
        "gap recovery, further training − same pipeline, family B",
        lambda t: recovered(t, "B"),
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
        paths,
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
)
