"""What the peers log, against literal re-implementations of their definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.curves import summarize_variant
from opd_probe.errors import InputError
from opd_probe.integrations.verl import overlap_metrics
from opd_probe.metrics.variants import SUPPORTS, WEIGHTS, parse_variant, verl
from opd_probe.plots.labels import METRICS
from opd_probe.trace import Trace
from tests.metrics import peers
from tests.samples import grouped_trace, random_pair

K, V = 3, 30
LENGTHS = (9, 1, 3, 7, 4)


@pytest.fixture(scope="module")
def logits() -> Any:
    """Near and far in turn, so that some sets agree and some overlaps are empty."""
    near, far = (random_pair(sum(LENGTHS), V, seed=11, spread=1.5, distance=distance) for distance in (0.1, 4.0))
    turn = np.arange(sum(LENGTHS)) % 2 == 0
    return tuple(np.where(turn.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(near, far, strict=True))


@pytest.fixture(scope="module")
def trace(logits: Any) -> Trace:
    rollouts = [{"prompt_id": f"p{index // 2}", "n_states": length} for index, length in enumerate(LENGTHS)]
    return grouped_trace(rollouts, vocabulary=V, k=8, logits=logits)


@pytest.fixture(scope="module")
def states(logits: Any) -> list[peers.State]:
    found = peers.states_of(logits[0], logits[1], K)
    sizes = {len(set(s) & set(t)) for _, _, s, t in found}
    assert {0, K} <= sizes  # the cases that definitions differ on
    return found


def by_response(states: list[peers.State]) -> list[list[peers.State]]:
    ends = list(itertools.accumulate(LENGTHS))
    return [states[end - length : end] for end, length in zip(ends, LENGTHS, strict=True)]


def agrees(row: dict[str, Any], wanted: dict[str, float]) -> None:
    assert {name for name in row if "/" in name and not name.endswith(("_lo", "_hi", "_n"))} == set(wanted)
    for name, value in wanted.items():
        assert row[name] == pytest.approx(value, rel=2e-6, abs=1e-7, nan_ok=True), name


def test_verl(trace: Trace, states: list[peers.State]) -> None:
    agrees(summarize_variant(trace, "verl", K, resamples=0), peers.verl(states, K))
    bounded = summarize_variant(trace, "verl:-2.5:0.5", K, resamples=0)
    agrees(bounded, peers.verl(states, K, clamp=-2.5, largest_loss=0.5))
    assert bounded["distillation/loss"] < 0.5 < bounded["distillation/loss_max"]
    assert (bounded["variant"], parse_variant("verl:-inf").name) == ("verl:-2.5:0.5", "verl")
    clamped = summarize_variant(trace, verl(log_prob_min_clamp=-3.0), K, resamples=0)
    agrees(clamped, peers.verl(states, K, clamp=-3.0))
    assert clamped["distillation/loss"] != summarize_variant(trace, "verl", K, resamples=0)["distillation/loss"]
    paper = opd_probe.summarize(trace, K, resamples=0)
    assert clamped["distillation/overlap_ratio"] == paper["overlap_ratio"]
    assert clamped["distillation/overlap_token_advantage_n"] == paper["overlap_advantage_n"] < trace.n_states


def test_nemo_rl(trace: Trace, states: list[peers.State]) -> None:
    tokens = trace.column("token_id").tolist()
    agrees(summarize_variant(trace, "nemo-rl", K, resamples=0), peers.nemo_rl(states, tokens))


def test_nemo_rl_on_its_own_example() -> None:
    """The lists and the four masses of NeMo-RL's unit test of its definitions."""
    lists = (torch.tensor([[[1, 2]]]), torch.tensor([[[0.6, 0.2]]]).log(), torch.tensor([[[1, 3]]]),
             torch.tensor([[[0.5, 0.3]]]).log(), torch.ones(1, 1))  # fmt: skip
    found = overlap_metrics(*lists, variant="nemo-rl")
    names = ("student_topk_head_prob_mass", "teacher_topk_head_prob_mass", "student_topk_mass_in_teacher_topk",
             "teacher_topk_mass_in_student_topk")  # fmt: skip
    values = [found[f"on_policy_distillation/topk_stats/{name}_mean"] for name in names]
    assert values == pytest.approx([0.8, 0.8, 0.6, 0.5])
    assert "on_policy_distillation/topk_stats/realized_in_student_topk_rate" not in found  # no token was given


def test_fireworks(trace: Trace, states: list[peers.State]) -> None:
    agrees(summarize_variant(trace, "fireworks", K, resamples=0), peers.fireworks(by_response(states)))
    # One response each, as the peer's function sees them: the mean of its values is the mean over rollouts.
    alone = [peers.fireworks([response]) for response in by_response(states)]
    row = summarize_variant(trace, "fireworks", K, resamples=0, average="rollout")
    for name in ("distill/entropy_gap", "distill/per_position_entropy/q4", "distill/overlap_advantage"):
        known = [one[name] for one in alone if name in one]
        assert row[name] == pytest.approx(peers.mean(known), rel=2e-6), name


@pytest.mark.parametrize(("support", "weights"), list(itertools.product(SUPPORTS, WEIGHTS)))
def test_thunlp(trace: Trace, states: list[peers.State], support: str, weights: str) -> None:
    agrees_in_chunks = summarize_variant(trace, f"thunlp:{support}:{weights}", K, resamples=0)
    whole = {name: value for name, value in agrees_in_chunks.items() if "_chunk_" not in name}
    agrees(whole, peers.thunlp(states, support, weights, K))


def test_thunlps_chunks_of_positions(logits: Any) -> None:
    positions = [1000, 1023, 1024, 2047, 2500, 0, 3]
    rollouts = [{"prompt_id": "a", "n_states": 5}, {"prompt_id": "b", "n_states": 2}]
    some = tuple(x[:7] for x in logits)
    trace = grouped_trace(rollouts, vocabulary=V, k=8, logits=some, positions=positions)
    row = summarize_variant(trace, "thunlp:union", K, resamples=0)
    states = peers.states_of(some[0], some[1], K)
    for name, rows in (("0_1024", (0, 1, 5, 6)), ("1024_2048", (2, 3)), ("2048_2501", (4,))):
        wanted = peers.thunlp([states[index] for index in rows], "union", "student_p", K)
        for quantity, value in wanted.items():
            assert row[f"{quantity}_chunk_{name}"] == pytest.approx(value, rel=2e-6, abs=1e-7), quantity


def test_unknown_teacher_values_are_left_out_with_a_count(trace: Trace) -> None:
    """A served teacher tells nothing of what only the student ranked."""
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    only = ~(arrays["student_top_ids"][:, :, None] == arrays["teacher_top_ids"][:, None, :]).any(2)
    arrays["teacher_logprobs_at_student_top"][only] = np.nan
    served = Trace(trace.rollouts, trace.provenance, arrays=arrays)
    full, partly = (summarize_variant(one, "thunlp", K, resamples=0) for one in (trace, served))
    assert partly["val-topk/adv_intersection"] == full["val-topk/adv_intersection"]
    assert 0 < partly["val-topk/adv_only_stu_n"] < full["val-topk/adv_only_stu_n"]
    assert summarize_variant(served, "fireworks", K, resamples=0)["distill/overlap_advantage"] == pytest.approx(
        summarize_variant(trace, "fireworks", K, resamples=0)["distill/overlap_advantage"]
    )


@pytest.mark.filterwarnings("ignore:.*intervals resample prompts:opd_probe.OpdProbeWarning")
def test_intervals_are_those_of_the_paper_where_definitions_are(trace: Trace) -> None:
    row, paper = summarize_variant(trace, "fireworks", K, seed=3), opd_probe.summarize(trace, K, seed=3)
    for ours, theirs in (("overlap_ratio", "overlap_ratio"), ("overlap_mass_teacher", "teacher_overlap_mass")):
        for end in ("", "_lo", "_hi", "_n"):
            assert row[f"distill/{ours}{end}"] == pytest.approx(paper[f"{theirs}{end}"]), ours
    assert math.isnan(summarize_variant(trace, "verl", K, resamples=0)["distillation/student_mass_lo"])


def test_every_headline_has_a_label_that_names_the_peer() -> None:
    for text in ("verl", "fireworks", "thunlp:union"):
        variant = parse_variant(text)
        for one in variant.quantities:
            if one.headline:
                assert variant.name.split(":")[0] in METRICS[one.name].title, one.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tinker",
        "verl:1",
        "verl:",
        "verl:a",
        "verl:nan",
        "verl:-10:0",
        "verl:-1:1:1",
        "thunlp:all",
        "thunlp:union:p",
        "thunlp:union:none:1",
    ],
)
def test_variants_that_do_not_exist(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_variant(text)
