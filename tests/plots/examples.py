"""Tables as the toolkit makes them, from formulas: the two runs of the lab, and awkward ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

STEPS = tuple(range(0, 101, 10))
LONG_NAMES = tuple(
    f"qwen2.5-1.5b-instruct-distilled-from-qwen2.5-{size}b-instruct-lr{rate}-seed{seed}"
    for size in (7, 14)
    for rate in ("1e-6", "5e-6")
    for seed in range(3)
)

# metric: value at the first and at the last step, half width of the interval
COMPATIBLE = {
    "overlap_ratio": (0.80, 0.85, 0.01),
    "overlap_advantage": (-0.037, -0.002, 0.002),
    "entropy_gap": (0.42, 0.11, 0.03),
    "student_entropy": (0.95, 0.62, 0.03),
    "teacher_entropy": (0.60, 0.58, 0.02),
    "student_overlap_mass": (0.96, 0.97, 0.004),
    "teacher_overlap_mass": (0.965, 0.975, 0.004),
    "reverse_kl": (0.60, 0.08, 0.04),
    "forward_kl": (0.75, 0.10, 0.05),
    "sampled_reward": (-0.60, -0.08, 0.05),
    "accuracy": (0.26, 0.70, 0.05),
}
INCOMPATIBLE = {
    "overlap_ratio": (0.66, 0.71, 0.012),
    "overlap_advantage": (-0.040, -0.017, 0.002),
    "entropy_gap": (0.54, 0.27, 0.03),
    "student_entropy": (0.95, 0.70, 0.03),
    "teacher_entropy": (0.72, 0.66, 0.02),
    "student_overlap_mass": (0.92, 0.90, 0.006),
    "teacher_overlap_mass": (0.88, 0.875, 0.007),
    "reverse_kl": (1.30, 0.55, 0.06),
    "forward_kl": (1.55, 0.80, 0.07),
    "sampled_reward": (-1.30, -0.55, 0.06),
    "accuracy": (0.26, 0.33, 0.05),
}


def run_rows(
    run: str,
    ends: dict[str, tuple[float, float, float]],
    steps: Sequence[float | None] = STEPS,
    *,
    teacher: str = "teacher",
    states: str = "own",
    n_prompts: int = 64,
    shift: float = 0.0,
) -> list[dict[str, object]]:
    """One row per step: an exponential approach from the first value to the last, with a ripple."""
    rows: list[dict[str, object]] = []
    for index, step in enumerate(steps):
        progress = 1.0 if step is None else 1 - np.exp(-3 * step / 100)
        row: dict[str, object] = {
            "run": run, "step": step, "teacher": teacher, "k": 16, "states": states,
            "n_prompts": n_prompts, "n_rollouts": 4 * n_prompts, "n_states": 9000 + 7 * index,
        }  # fmt: skip
        for number, (metric, (first, last, half)) in enumerate(ends.items()):
            value = first + (last - first) * progress / (1 - np.exp(-3)) + shift * abs(last - first)
            value += 0.3 * half * np.sin(2.1 * index + number)
            if metric == "overlap_advantage":
                value = min(value, -1e-9)
            elif metric == "accuracy":
                value = min(value, 0.95)
            row |= {metric: value, f"{metric}_lo": value - half, f"{metric}_hi": value + half}
            row[f"{metric}_n"] = 9000
        far = 1.0 if ends is INCOMPATIBLE else 0.0
        for side, lag in (("student", 2 * far), ("teacher", 3 * far - 1)):
            row |= {
                f"{side}_k_for_0.97_median": 4 + lag,
                f"{side}_k_for_0.97_p90": 13 - 5 * progress + 2 * lag,
                f"{side}_k_for_0.97_share_beyond": 0.004,
                f"{side}_k_for_0.99_median": 8 + lag,
                f"{side}_k_for_0.99_p90": 38 - 14 * progress + 3 * lag,
                f"{side}_k_for_0.99_share_beyond": 0.031,
            }
        rows.append(row)
    return rows


def lab_table(steps: Sequence[float | None] = STEPS) -> pd.DataFrame:
    """The lab's two runs."""
    rows = run_rows("compatible", COMPATIBLE, steps) + run_rows("incompatible", INCOMPATIBLE, steps)
    return pd.DataFrame(rows)


def crowd_table(steps: Sequence[float | None] = STEPS) -> pd.DataFrame:
    """Twelve runs with long names."""
    rows: list[dict[str, object]] = []
    for index, name in enumerate(LONG_NAMES):
        rows += run_rows(name, COMPATIBLE if index % 2 else INCOMPATIBLE, steps, shift=0.12 * index)
    return pd.DataFrame(rows)


def position_table(runs: Iterable[str] = ("compatible",), steps: Sequence[float] = (0, 50, 100)) -> pd.DataFrame:
    """Twenty bins of positions per run and step."""
    rows = []
    for run in runs:
        ends = INCOMPATIBLE if "in" in run else COMPATIBLE
        for step in steps:
            for number in range(20):
                row: dict[str, object] = {
                    "run": run, "step": step, "teacher": "teacher", "k": 16, "states": "own",
                    "n_prompts": 64, "position_lo": 50 * number, "position_hi": 50 * number + 50,
                    "position": 50 * number + 24.5,
                }  # fmt: skip
                for metric, (first, last, half) in ends.items():
                    if metric != "accuracy":
                        value = first + (last - first) * (step / 100) ** 0.5 * np.exp(-number / 18)
                        value += 0.4 * half * np.sin(1.7 * number + step)
                        row |= {metric: value, f"{metric}_lo": value - half, f"{metric}_hi": value + half}
                rows.append(row)
    return pd.DataFrame(rows)


def mass_table(
    runs: Iterable[str] = ("compatible", "incompatible"),
    steps: Sequence[float | None] = (0, 50, 100),
    largest: int = 64,
) -> pd.DataFrame:
    """Tails that fall like a power of the rank, heavier early in training and in the incompatible run."""
    rows = []
    for run in runs:
        off = "in" in run
        for step in steps:
            late = 1.0 if step is None else step / 100
            for k in range(1, largest + 1):
                tails = {
                    "student_topk": 0.34 * (1 - 0.3 * late) * k ** -(1.25 + 0.2 * late - 0.15 * off),
                    "teacher_topk": 0.24 * k ** -(1.45 - 0.25 * off),
                    "student_overlap": 0.42 * (1 - 0.25 * late) * k ** -(0.9 - 0.35 * off) + 0.005,
                    "teacher_overlap": 0.46 * (1 - 0.25 * late) * k ** -(0.95 - 0.4 * off) + 0.004,
                }
                row: dict[str, object] = {
                    "run": run, "step": step, "teacher": "teacher", "k": k, "states": "own", "n_prompts": 64,
                }  # fmt: skip
                for name, tail in tails.items():
                    mass = 1 - tail
                    for end, sign in (("", 0.0), ("_lo", -0.1), ("_hi", 0.1)):
                        row[f"{name}_mass{end}"] = mass + sign * tail
                rows.append(row)
    return pd.DataFrame(rows)


def seeds_table(steps: Sequence[float | None] = STEPS, seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """The lab's two runs, each with several seeds that lie apart."""
    rows: list[dict[str, object]] = []
    for seed in seeds:
        for run, ends in (("compatible", COMPATIBLE), ("incompatible", INCOMPATIBLE)):
            rows += [row | {"seed": seed} for row in run_rows(run, ends, steps, shift=0.05 * seed)]
    return pd.DataFrame(rows)


def bars_rows(seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """Accuracy and gap recovery of two models in each of two groups."""
    return pd.DataFrame(
        {
            "group": group, "model": model, "seed": seed, "n_prompts": 64,
            "accuracy": level + 0.02 * seed, "accuracy_lo": level - 0.05, "accuracy_hi": level + 0.06,
            "gap_recovery": 2 * level - 0.5 + 0.01 * seed,
        }
        for group, base in (("family A", 0.1), ("family B", 0.2))
        for model, level in (("same pipeline", base), ("further training", base + 0.5))
        for seed in seeds
    )  # fmt: skip


def rollout_rows(runs: Iterable[str] = ("good", "failing"), seeds: Sequence[int] = (0, 1)) -> pd.DataFrame:
    """Sequence mean rewards: right and wrong rollouts far apart in the first run, alike in the others."""
    rows = []
    for number, run in enumerate(runs):
        for seed in seeds:
            for index in range(200):
                correct = index % 3 == 0
                reward = -0.6 + (0.3 if correct and number == 0 else 0.0) + 0.2 * np.sin(1.3 * index + seed)
                rows.append(
                    {"run": run, "teacher": f"{run} teacher", "seed": seed, "step": 0, "correct": float(correct),
                     "sequence_mean_reward": reward}
                )  # fmt: skip
    return pd.DataFrame(rows)


def continuation_rows(seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """A gain that falls with the depth of the prefix."""
    rows = []
    for teacher, height in (("good teacher", 0.4), ("failing teacher", 0.1)):
        for seed in seeds:
            for depth in (0, 4, 8, 16, 24):
                gain = height * (1 - depth / 26) + 0.01 * seed
                row: dict[str, object] = {"run": teacher, "teacher": teacher, "seed": seed, "depth": depth}
                for name, value in (("gain", gain), ("student_accuracy", 0.3), ("teacher_accuracy", 0.3 + gain)):
                    row |= {name: value, f"{name}_lo": value - 0.03, f"{name}_hi": value + 0.03}
                rows.append(row)
    return pd.DataFrame(rows)
