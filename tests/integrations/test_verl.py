"""Top-k tensors of a training loop against the float64 reference, which sees the whole logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import opd_probe
from opd_probe.commands.tokens import tokens
from opd_probe.errors import InputError
from opd_probe.integrations.verl import overlap_metrics, top_lists, topk_trace
from opd_probe.progress import Silent
from tests import reference
from tests.samples import random_pair

B, T, V, K = 3, 5, 40, 8
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
ON_OVERLAP = ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass",
              "extreme_advantage_gap", "student_topk_mass", "teacher_topk_mass", "topk_reverse_kl_overlap")  # fmt: skip


@pytest.fixture
def batch() -> dict[str, Any]:
    """Everything that a loop may hold, from random logits; what is masked is rubbish."""
    student, teacher, tokens = random_pair(B * T, V, seed=5)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1).view(B, T, V) for x in (student, teacher))
    ids = torch.from_numpy(tokens).view(B, T)
    generator = torch.Generator().manual_seed(0)

    def shuffled_top(logs: Tensor) -> Tensor:
        return logs.topk(K, -1).indices[..., torch.randperm(K, generator=generator)]

    sp, sq = shuffled_top(p), shuffled_top(q)
    found = {
        "student_topk_ids": sp, "student_topk_logprobs": p.gather(-1, sp), "teacher_topk_ids": sq,
        "teacher_topk_logprobs": q.gather(-1, sq), "response_mask": MASK,
        "teacher_logprobs_at_student_top": q.gather(-1, sp), "student_logprobs_at_teacher_top": p.gather(-1, sq),
        "token_ids": ids, "student_logprobs": p.gather(-1, ids[..., None])[..., 0],
        "teacher_logprobs": q.gather(-1, ids[..., None])[..., 0],
        "student_entropy": -(p.exp() * p).sum(-1), "teacher_entropy": -(q.exp() * q).sum(-1),
        "reverse_kl": (p.exp() * (p - q)).sum(-1), "forward_kl": (q.exp() * (q - p)).sum(-1),
    }  # fmt: skip
    for name in found:
        if name.endswith("logprobs"):
            found[name][MASK == 0] = torch.nan
    return {**found, "logits": (student, teacher, tokens)}


def expected(batch: dict[str, Any], k: int) -> dict[str, float]:
    rows = MASK.flatten().bool().numpy()
    states = reference.states(*(x[rows] for x in batch.pop("logits")), k, trace_k=K)
    return {name: reference.token_mean([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("k", [K, 3])
def test_all_that_is_known_is_the_references_value(batch: dict[str, Any], k: int) -> None:
    wanted = expected(batch, k)
    found = overlap_metrics(**batch, k=k, vocabulary_size=V)
    assert found["n_states"] == int(MASK.sum())
    unknown = {"jsd", "sign_noise"}  # nobody gave them
    for name in set(wanted) - unknown:
        if "_k_for_" not in name:
            assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name
    assert all(name not in found and found[f"{name}_n"] == 0 for name in unknown)
    assert all(math.isfinite(value) for value in found.values())


def test_two_lists_alone_give_what_lies_on_the_overlap(batch: dict[str, Any]) -> None:
    wanted = expected(batch, K)
    lists = {name: batch[name] for name in list(batch)[:5]}
    found = overlap_metrics(**lists)
    for name in ON_OVERLAP:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name
    for name in ("entropy_gap", "reverse_kl", "sampled_reward", "topk_reverse_kl_union", "teachability"):
        assert name not in found, name
        assert found[f"{name}_n"] == 0
    assert found["response_length"] == 4.0  # up to the last unmasked token: 3 and 5; the empty one does not count


@pytest.mark.parametrize("variant", ["verl", "fireworks", "thunlp:union"])
def test_peers_definitions_of_the_same_batch(batch: dict[str, Any], variant: str) -> None:
    batch.pop("logits")
    row = opd_probe.summarize_variant(topk_trace(**batch), variant, 4, resamples=0)
    found = overlap_metrics(**batch, k=4, variant=variant)
    names = [name for name in row if "/" in name and not name.endswith(("_lo", "_hi"))]
    assert {name: found[name] for name in names if name in found} == {
        name: row[name] for name in names if not math.isnan(row[name])
    }
    assert found["n_states"] == int(MASK.sum())


def test_nested_tensors_are_padded_ones(batch: dict[str, Any]) -> None:
    """As verl's batches have them: each response as long as it is."""
    batch.pop("logits")
    cut = {name: [row[:n] for row, n in zip(given, (5, 3, 4), strict=True)] for name, given in batch.items()}
    padded = {name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for name, rows in cut.items()}
    nested = {name: torch.nested.nested_tensor(rows, layout=torch.jagged) for name, rows in cut.items()}
    nested["response_mask"] = nested["response_mask"].bool()
    assert overlap_metrics(**nested, k=4) == overlap_metrics(**padded, k=4)


def test_where_models_agree_alone_there_is_no_mean(batch: dict[str, Any]) -> None:
    """The teacher's value at a token of the student's top is known at the one state where the sets are the same."""
    lists = {name: batch[name].clone() for name in list(batch)[:5]}
    lists["student_topk_ids"][0, 0] = lists["teacher_topk_ids"][0, 0]
    lists["student_topk_logprobs"][0, 0] = lists["teacher_topk_logprobs"][0, 0]
    found = overlap_metrics(**lists)
    assert found["topk_reverse_kl_student_n"] == 1
    assert "topk_reverse_kl_student" not in found


def test_disjoint_sets_count_zero_and_have_no_advantage(batch: dict[str, Any]) -> None:
    lists = {name: batch[name] for name in list(batch)[:5]}
    found = overlap_metrics(**(lists | {"teacher_topk_ids": lists["student_topk_ids"] + V}))
    assert found["overlap_ratio"] == found["student_overlap_mass"] == 0.0
    assert found["n_empty_overlap"] == found["n_states"]
    assert "overlap_advantage" not in found
    assert found["overlap_advantage_n"] == 0


def test_a_saved_trace_is_one_like_any_other(batch: dict[str, Any], tmp_path: Path) -> None:
    batch.pop("logits")
    given = {"run": "loop", "step": 7, "teacher": "big", "scores": [1.0, 0.0, 1.0], "prompt_ids": ["a", "a", "b"]}
    trace = topk_trace(**batch, **given).save(tmp_path / "trace.parquet")
    row = opd_probe.summarize(opd_probe.read_trace(tmp_path / "trace.parquet"), 4, resamples=0)
    assert (row["n_rollouts"], row["n_skipped"], row["n_prompts"], row["accuracy"]) == (2, 1, 1, 0.5)
    assert row["overlap_ratio"] == overlap_metrics(**batch, k=4)["overlap_ratio"]
    assert trace.provenance["labels"] == {"states": "own", "run": "loop", "step": 7, "teacher": "big"}
    assert np.array_equal(trace.column("position"), [0, 1, 2, 1, 2, 3, 4])


def test_what_lists_alone_do_not_tell(batch: dict[str, Any], tmp_path: Path) -> None:
    trace = topk_trace(**{name: batch[name] for name in list(batch)[:5]}).save(tmp_path / "trace.parquet")
    assert opd_probe.summarize(trace, 4, resamples=0)["n_outside_vocabulary"] == 0
    with pytest.raises(InputError, match="neither a reverse KL nor log-probs of the sampled tokens in the trace"):
        tokens(str(tmp_path / "trace.parquet"), Silent(), options={}, out=str(tmp_path))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_batch_in_a_narrow_type(batch: dict[str, Any], kind: torch.dtype) -> None:
    """Every tensor of a loop that runs in bfloat16; the numbers are those of what the rounded values say."""
    batch.pop("logits")
    narrow = {name: x.to(kind) if x.is_floating_point() else x for name, x in batch.items()}
    narrow["response_mask"] = MASK.to(kind)
    with pytest.warns(opd_probe.OpdProbeWarning, match="rounded by up to") as said:
        found = overlap_metrics(**narrow, scores=torch.ones(B, dtype=kind))
    assert len(said) == 1
    assert all(name in str(said[0].message) for name in ("teacher_topk_logprobs", "student_entropy", "reverse_kl"))
    wide = {name: x.float() if x.is_floating_point() else x for name, x in narrow.items()}
    assert found == overlap_metrics(**wide, scores=[1.0] * B)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_lists_of_one_selection(kind: torch.dtype) -> None:
    logits = (torch.randn(2, 30, 5000, generator=torch.Generator().manual_seed(1)) * 2).to(kind)
    logits[0, 3, 7:] = -torch.inf
    ids, logprobs = top_lists(logits, 64)
    short_ids, short_logprobs = top_lists(logits, 16)
    assert torch.equal(ids[..., :16], short_ids)
    assert torch.equal(logprobs[..., :16], short_logprobs)
    for row in ((0, 3), (1, 29)):
        wanted = reference.top_k(logits[row].float(), 16)
        assert short_ids[row].tolist() == wanted + [-1] * (16 - len(wanted))
        exact = reference.log_softmax(logits[row].double())[wanted]
        np.testing.assert_allclose(short_logprobs[row][: len(wanted)], exact, atol=1e-6)
    found = overlap_metrics(short_ids, short_logprobs, ids[..., :16], logprobs[..., :16], torch.ones(2, 30))
    assert found["overlap_ratio"] == pytest.approx((59 * 16 + 7) / (60 * 16))
    assert (found["overlap_advantage"], found["n_short_lists"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("logits", "k", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.int64), 2, "expected a floating tensor"),
        ([[0.0]], 1, "expected a floating tensor"),
        (torch.zeros(2, 5), 6, "k = 6; expected a whole number from 1 to 5"),
        (torch.full((2, 5), torch.nan), 2, "the model's logits are NaN at a state"),
        (torch.full((2, 5), -torch.inf), 2, "-inf everywhere"),
    ],
)
def test_logits_without_lists(logits: Any, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        top_lists(logits, k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_mask": MASK[0]}, r"response_mask: shape \(5,\); expected \[B, T\]"),
        ({"response_mask": MASK * 0}, "no 1 in it"),
        ({"student_topk_ids": torch.zeros(B, T)}, r"student_topk_ids: shape \(3, 5\); expected \[B, T, K\]"),
        ({"teacher_topk_logprobs": torch.zeros(B, T, K - 1)}, r"teacher_topk_logprobs: shape \(3, 5, 7\); expected"),
        ({"teacher_topk_ids": torch.zeros(B, T, K, dtype=torch.int64)}, "teacher_topk_ids: one id twice in a state"),
        ({"student_topk_ids": torch.full((B, T, K), -1)}, "student_topk_ids: expected token ids"),
        ({"student_topk_logprobs": torch.full((B, T, K), torch.nan)}, "student_topk_logprobs: NaN"),
        (
            {"student_topk_logprobs": torch.full((B, T, K), -torch.inf)},
            "student_topk_logprobs: only −inf at an unmasked",
        ),
        ({"student_topk_logprobs": torch.zeros(B, T, K)}, "student_topk_logprobs: probabilities of a state sum to 8;"),
        ({"student_logprobs_at_teacher_top": torch.full((B, T, K), 9.0)}, "at teacher_topk_ids: probabilities of a"),
        ({"response_mask": torch.where(MASK > 0, 5, -100)}, "response_mask: expected 0 and 1, got 5"),
        ({"response_mask": MASK * math.nan}, "response_mask: expected 0 and 1, got nan"),
        ({"student_topk_ids": np.zeros((B, T, K))}, "student_topk_ids: ndarray; expected a tensor"),
        ({"token_ids": torch.full((B, T), -100)}, "token_id: expected token ids"),
        ({"scores": ["good", "bad", "good"]}, "scores: expected one number for each response, got 'good'"),
        ({"variant": "verl", "metrics": ["overlap_ratio"]}, "metrics and variant: expected one of them"),
        ({"k": K + 1}, "k = 9"),
        ({"scores": [1.0]}, "scores: 1 of them; expected one for each of the 3 responses"),
        (
            {"teacher_logprobs_at_student_top": torch.zeros(B, T)},
            r"the other model's at student_topk_ids: shape \(3, 5\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(batch: dict[str, Any], change: dict[str, Any], message: str) -> None:
    lists = {name: batch[name] for name in list(batch)[:5]}
    with pytest.raises(InputError, match=message):
        overlap_metrics(**(lists | change))
