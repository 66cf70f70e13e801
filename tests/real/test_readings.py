"""What a reader must not conclude, measured: a single shared token, another temperature, a mean led by few states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import opd_probe
from tests.real.measured import MEASURED, needs_the_model
from tests.real.pairs import DEPTH, Pair, sample
from tests.real.test_statistics import Work, work_of

pytestmark = needs_the_model

COOL = 0.6


def logits_of_both(pair: Pair) -> tuple[Work, torch.Tensor, torch.Tensor]:
    work = work_of(pair, "float32")
    student, teacher = (torch.cat([rows.clone() for rows in work.logits(side)]) for side in (0, 1))
    return work, student, teacher


def test_one_shared_token_has_the_best_advantage(ordinary: Pair) -> None:
    """At k = 4 a teacher that has nothing to do with the student has more such states, and so a better advantage."""
    work, student, teacher = logits_of_both(ordinary)
    elsewhere = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, other in (("related", teacher), ("unrelated", teacher[elsewhere])):
        trace = opd_probe.trace_logits(student, other, work.pair.tokens, DEPTH)
        for k in (4, 16):
            table = opd_probe.state_metrics(trace, k)
            size = np.round(table["overlap_ratio"] * k)
            found[f"{name}, k = {k}"] = {
                "reverse_kl": table["reverse_kl"].mean(),
                "overlap_advantage": table["overlap_advantage"].mean(),
                "without_single": table["overlap_advantage"][size > 1].mean(),
                "single_share": float((size == 1).sum() / (size >= 1).sum()),
            }
            assert (table["overlap_advantage"][size == 1].abs() < 1e-12).all()
    MEASURED["readings"]["single_overlap"] = rounded_all(found)
    assert found["unrelated, k = 4"]["reverse_kl"] > 2 * found["related, k = 4"]["reverse_kl"]
    for k in (4, 16):
        assert found[f"unrelated, k = {k}"]["single_share"] > found[f"related, k = {k}"]["single_share"]


def rounded_all(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    from benchmarks.precision import rounded

    return {name: {key: rounded(value) for key, value in values.items()} for name, values in found.items()}


def test_cooler_samples_are_other_states(ordinary: Pair, home: Path) -> None:
    """One student and one teacher, both scored at temperature 1; the samples alone differ."""
    cool = sample(ordinary.student, ordinary.teacher, "cool", home, COOL)
    found = {}
    for name, pair in (("1", ordinary), (str(COOL), cool)):
        row = opd_probe.summarize(opd_probe.replay(pair.student, pair.teacher, pair.rollouts, k=DEPTH), 16, resamples=0)
        found[name] = {key: row[key] for key in ("sampled_reward", "reverse_kl", "overlap_ratio", "student_entropy")}
    MEASURED["readings"]["temperature"] = rounded_all(found)
    assert found[str(COOL)]["student_entropy"] < found["1"]["student_entropy"]
    # At temperature 1 the mean reward estimates −KL(p ‖ q); at another it estimates nothing.
    exact = ordinary.truth
    noise = exact["sampled_reward"].std() / np.sqrt(len(exact["sampled_reward"]))
    assert abs(exact["sampled_reward"].mean() + exact["reverse_kl"].mean()) < 4 * noise


def test_few_states_lead_a_mean(ordinary: Pair, sharpened: Pair) -> None:
    found = {}
    for pair in (ordinary, sharpened):
        kl, reward = np.sort(pair.truth["reverse_kl"])[::-1], np.sort(pair.truth["absolute_reward"])[::-1]
        top = [max(1, round(share * len(kl))) for share in (0.01, 0.1)]
        found[pair.name] = {
            "kl_top_1pct": kl[: top[0]].sum() / kl.sum(),
            "kl_top_10pct": kl[: top[1]].sum() / kl.sum(),
            "reward_top_1pct": reward[: top[0]].sum() / reward.sum(),
            "reward_top_10pct": reward[: top[1]].sum() / reward.sum(),
            "kl_median_over_mean": float(np.median(kl) / kl.mean()),
        }
        assert found[pair.name]["kl_top_10pct"] > 0.1
    MEASURED["readings"]["led_by_few"] = rounded_all(found)
