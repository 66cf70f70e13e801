"""What a run's curves are drawn over: values of the paper (arXiv 2604.13016), and of two runs of this package's lab.

They are of other models and other tasks than the reader's: shapes to compare with, no thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AT_K = 16
"""The k of all of them: overlaps of another k are other quantities."""


@dataclass(frozen=True, slots=True)
class Band:
    """Values between which a quantity stayed."""

    low: float
    high: float
    says: str


@dataclass(frozen=True, slots=True)
class Path:
    """A quantity over a whole training, at shares of it from 0 to 1.

    Attributes:
        of: ``paper`` or ``lab``.
    """

    of: str
    points: Sequence[tuple[float, float]]
    says: str


PAPER_BANDS: Mapping[str, Band] = {
    "overlap_ratio": Band(0.75, 0.78, "the paper's failing pair stays at 75-78 % (Fig. 6)"),
    "student_overlap_mass": Band(0.97, 0.99, "97-99 % throughout the paper's runs (Fig. 18)"),
    "teacher_overlap_mass": Band(0.97, 0.99, "97-99 % throughout the paper's runs (Fig. 18)"),
}

PAPER_PATHS: Mapping[str, Path] = {
    "overlap_ratio": Path("paper", ((0.0, 0.72), (1.0, 0.91)), "its successful pair goes 72 → 91 %"),
}
"""Both ends are the paper's; the line between them is drawn by us."""

LAB_STEPS = (0, 5, 15, 30, 50)
LAB_EXPERIMENT = "success_failure"
LAB_RUNS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "compatible teacher": {
        "overlap_ratio": (0.762, 0.784, 0.790, 0.802, 0.811),
        "student_overlap_mass": (0.924, 0.945, 0.970, 0.979, 0.981),
        "teacher_overlap_mass": (0.972, 0.976, 0.980, 0.983, 0.984),
    },
    "incompatible teacher": {
        "overlap_ratio": (0.682, 0.684, 0.680, 0.685, 0.688),
        "student_overlap_mass": (0.896, 0.904, 0.913, 0.913, 0.915),
        "teacher_overlap_mass": (0.886, 0.888, 0.892, 0.894, 0.896),
    },
}
"""Means over three seeds, as ``figures/data/curves.parquet`` has them. The accuracy of the first goes .21 → .73, that
of the second stays at .21."""

LAB_SAYS = (
    "two runs of opd-probe's lab, small models that do sums: above a compatible teacher (accuracy 21 → 73 %), below an "
    "incompatible one (21 %, flat)"
)


def lab_paths(metric: str) -> list[Path]:
    """The lab's runs, where they have a quantity."""
    shares = [step / LAB_STEPS[-1] for step in LAB_STEPS]
    return [
        Path("lab", tuple(zip(shares, run[metric], strict=True)), LAB_SAYS)
        for run in LAB_RUNS.values()
        if metric in run
    ]
