"""NeMo-RL's statistics, in the layout in which it saves them, of real models: the traces of a replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.cli.main import main
from opd_probe.engine.nemo_rl import dump_traces, find_dumps
from opd_probe.errors import InputError
from opd_probe.trace import Trace
from opd_probe.types import Rollout
from tests.tiny import tiny_model

K, V, STEP = 16, 48, 7
SEQUENCES = [[3, 9, 11, 5, 6], [3, 9, 30, 31], [8, 2, 4, 7, 17, 40, 1], [8, 2, 13]]
MASKS = [[0, 0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0, 1]]
REWARDS, TRAINED = [1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.0]

Payload = dict[str, Any]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return tiny_model(V, seed=1, spread=0.4), tiny_model(V, seed=2, spread=0.4)


@pytest.fixture(scope="module")
def replayed(models: tuple[Any, Any]) -> Trace:
    rollouts = []
    for index, (ids, mask) in enumerate(zip(SEQUENCES, MASKS, strict=True)):
        start = mask.index(1)
        rollouts.append(Rollout(str(index), ids[:start], ids[start:], response_mask=mask[start:], score=REWARDS[index]))
    return opd_probe.replay(*models, rollouts[:3], k=K)


@pytest.fixture(scope="module")
def payloads(models: tuple[Any, Any]) -> tuple[Payload, Payload]:
    """The lists of a step, and the sampled tokens' log-probabilities."""
    width = max(map(len, SEQUENCES)) + 1
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in SEQUENCES])
    mask = torch.tensor([mask + [0] * (width - len(mask)) for mask in MASKS]).bool()
    places = mask.nonzero()
    rows, columns = places[:, 0], places[:, 1]
    common = {
        "step": STEP, "num_generations_per_prompt": 2, "sample_index": torch.arange(4, dtype=torch.int32),
        "reward": torch.tensor(REWARDS), "sample_loss_mask": torch.tensor(TRAINED),
        "input_length": torch.tensor(list(map(len, SEQUENCES))), "num_response_tokens": mask.sum(1),
        "token_sample_index": rows.int(), "token_sequence_position": columns.int(),
        "token_response_position": (mask.cumsum(1) - 1)[rows, columns].int(),
        "prompt_group_index": torch.tensor([0, 0, 1, 1], dtype=torch.int32), "agent_ref": [{"name": "a"}] * 4,
    }  # fmt: skip
    lists: Payload = {"format_version": 2, "k": K, **common, "token_ids": ids[rows, columns].int()}
    tokens: Payload = {"format_version": 1, **common, "token_ids": ids[rows, columns]}
    for side, name, model in (
        ("student", "student_prev_logprobs", models[0]),
        ("teacher", "teacher_logprobs", models[1]),
    ):
        with torch.no_grad():
            logits = torch.stack([model(ids[row : row + 1, :width]).logits[0] for row in range(4)]).float()
        before = logits[rows, columns - 1]
        top = before.topk(K)
        lists |= {f"{side}_topk_token_ids": top.indices.int(), f"{side}_topk_logits": top.values,
                  f"{side}_V_logsumexp": before.logsumexp(1)}  # fmt: skip
        tokens[name] = before.log_softmax(1).gather(1, ids[rows, columns][:, None])[:, 0]
    tokens["generation_logprobs"] = tokens["student_prev_logprobs"] - 0.25
    return lists, tokens


def saved(folder: Path, payloads: tuple[Payload, Payload], which: str = "both") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in zip(("topk", "token"), payloads, strict=True):
        if which in ("both", name):
            torch.save(payload, folder / f"opd_{name}_stats_step{payload['step']}.pt")
    return folder


def trace_of(folder: Path) -> Trace:
    (trace,) = dump_traces(find_dumps([folder]), "mine")
    return trace


def test_the_trace_is_that_of_a_replay(payloads: tuple[Payload, Payload], replayed: Trace, tmp_path: Path) -> None:
    trace = trace_of(saved(tmp_path, payloads))
    for name in ("position", "token_id", "student_top_ids", "teacher_top_ids"):
        np.testing.assert_array_equal(trace.column(name), replayed.column(name), err_msg=name)
    for name in ("student_top_logprobs", "teacher_top_logprobs", "student_logprob", "teacher_logprob"):
        np.testing.assert_allclose(trace.column(name), replayed.column(name), atol=2e-5, err_msg=name)
    np.testing.assert_allclose(trace.column("sampler_logprob"), trace.column("student_logprob") - 0.25, atol=1e-6)
    shared = np.isin(trace.column("student_top_ids"), trace.column("teacher_top_ids"))
    assert np.isnan(trace.column("teacher_logprobs_at_student_top")).any()  # what no list has is unknown
    assert shared.any()
    ours, theirs = (opd_probe.summarize(one, K, resamples=0) for one in (trace, replayed))
    for name in ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass", "sampled_reward",
                 "student_topk_mass", "teacher_topk_mass"):  # fmt: skip
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert np.isnan(ours["reverse_kl"])
    rows = trace.rollouts.to_pylist()
    assert [row["n_states"] for row in rows] == [3, 2, 4, 0]
    assert rows[3]["skipped"] == "not trained on"
    assert [row["prompt_length"] for row in rows] == [2, 2, 1, 2]
    assert [row["response_length"] for row in rows] == [3, 2, 6, 1]
    assert [row["prompt_id"] for row in rows] == ["7/0", "7/0", "7/1", "7/1"]


def test_in_its_own_definitions_it_says_what_the_trainer_logged(
    payloads: tuple[Payload, Payload], replayed: Trace, tmp_path: Path
) -> None:
    """And the same as of a replay, since they need each model's own list alone."""
    ours, theirs = (
        opd_probe.summarize_variant(one, "nemo-rl", K, resamples=0)
        for one in (trace_of(saved(tmp_path, payloads)), replayed)
    )
    names = [
        name for name in theirs if name.startswith("on_policy_distillation/") and not name.endswith(("_lo", "_hi"))
    ]
    assert len(names) > 100
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_as_it_stores_them_and_some_of_the_tokens(payloads: tuple[Payload, Payload], tmp_path: Path) -> None:
    """In bfloat16, at the tokens that its limit leaves; a place at which a model was not asked is unknown."""
    lists, tokens = payloads
    kept = torch.tensor([1, 4, 6, 8])
    n = len(lists["token_ids"])
    few = {name: held[kept] if isinstance(held, torch.Tensor) and len(held) == n and name.startswith(
        ("token_", "student_", "teacher_")) else held for name, held in lists.items()}  # fmt: skip
    for side in ("student", "teacher"):
        few[f"{side}_topk_logits"] = few[f"{side}_topk_logits"].bfloat16()
    few["teacher_topk_token_ids"] = few["teacher_topk_token_ids"].clone()
    few["teacher_topk_token_ids"][2] = -1
    trace = trace_of(saved(tmp_path, (few, tokens)))
    assert trace.column("position").tolist() == [1, 1, 1, 5]
    assert "stored in bfloat16: log-probabilities are off by up to" in trace.warnings[0]
    np.testing.assert_allclose(trace.column("student_logprob"), tokens["student_prev_logprobs"][kept], atol=1e-6)
    row = opd_probe.summarize(trace, K, resamples=0)
    assert (row["n_states"], row["overlap_ratio_n"]) == (4, 3)
    assert opd_probe.summarize_variant(trace, "nemo-rl", K, resamples=0)[
        "on_policy_distillation/topk_stats/mean_jaccard_n"] == 3  # fmt: skip


@pytest.mark.filterwarnings("ignore:k = 1:opd_probe.errors.OpdProbeWarning")  # of the log-probabilities alone
@pytest.mark.parametrize("which", ["topk", "token"])
def test_one_of_the_files_alone(payloads: tuple[Payload, Payload], replayed: Trace, tmp_path: Path, which: str) -> None:
    trace = trace_of(saved(tmp_path, payloads, which))
    row = opd_probe.summarize(trace, trace.K, resamples=0)
    wanted = replayed.column("student_logprob")
    if which == "topk":
        found = trace.column("student_logprob")
        listed = (trace.column("student_top_ids") == trace.column("token_id")[:, None]).any(1)
        np.testing.assert_array_equal(np.isnan(found), ~listed)
        np.testing.assert_allclose(found[listed], wanted[listed], atol=2e-5)
        assert row["overlap_ratio_n"] == trace.n_states
    else:
        np.testing.assert_allclose(trace.column("student_logprob"), wanted, atol=2e-5)
        assert np.isnan([row["overlap_ratio"], row["student_overlap_mass"], row["student_topk_mass"]]).all()
        assert row["sampled_reward_n"] == trace.n_states


@pytest.mark.filterwarnings("ignore::opd_probe.errors.OpdProbeWarning")
def test_the_command(payloads: tuple[Payload, Payload], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "exp_001", payloads)
    assert main(["ingest", str(folder), "-o", str(tmp_path / "out"), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["traces"], told["states"], told["steps"], told["k"]) == ("nemo-rl", 1, 9, [STEP], K)
    words = [
        "overlap",
        "--traces",
        str(tmp_path / "out"),
        "--k",
        str(K),
        "--out",
        str(tmp_path / "o"),
        "--format",
        "json",
    ]
    assert main([*words, "--variant", "nemo-rl"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["step"]) == ("exp_001", STEP)
    assert 0 < row["on_policy_distillation/topk_stats/mean_jaccard"] < 1


SUM = "student_V_logsumexp sum to {} as probabilities"
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a list that is not there": ({"teacher_V_logsumexp": None}, "teacher_V_logsumexp is NoneType; expected a tensor"),
    "a list too short": (
        {"teacher_V_logsumexp": torch.zeros(3)},
        r"teacher_V_logsumexp has the shape \(3,\); expected",
    ),
    "raw logits": ({"student_V_logsumexp": torch.full((10,), -3.0)}, SUM.format(".*")),
    "not a number": ({"student_V_logsumexp": torch.full((10,), torch.nan)}, SUM.format("nan")),
    "sequences that are not there": (
        {"token_sample_index": torch.full((10,), 9)},
        "expected tokens of sequences 0 to 3",
    ),
    "a step that is text": ({"step": "7"}, "step is '7'; expected a whole number"),
    "other tokens than the other file": ({"token_ids": torch.zeros(10).int()}, "its tokens are not those of"),
    "nothing trained on": ({"sample_loss_mask": torch.zeros(4)}, "no sequence with sample_loss_mask 1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_read_is_one_line(payloads: tuple[Payload, Payload], tmp_path: Path, fault: str) -> None:
    change, told = BROKEN[fault]
    folder = saved(tmp_path, ({**payloads[0], **change}, payloads[1]))
    if fault == "a step that is text":
        (folder / "opd_topk_stats_step7.pt").rename(folder / "opd_topk_stats.pt")
    with pytest.raises(InputError, match=told) as error:
        trace_of(folder)
    assert "\n" not in str(error.value)


def test_lists_whose_teacher_was_deferred(payloads: tuple[Payload, Payload], tmp_path: Path) -> None:
    held = {"student_prev_topk_token_ids": torch.zeros(1, 2), "token_sample_index": torch.zeros(1), "step": 1}
    torch.save(held, tmp_path / "opd_topk_student_stats_step1.pt")
    with pytest.raises(InputError, match="the teacher's were deferred; ingest opd_topk_offline_inputs"):
        find_dumps([tmp_path])
    twice = saved(tmp_path, payloads)
    saved(tmp_path / "again", payloads)
    with pytest.raises(InputError, match=r"of step 7, as .* is; give the files of one run"):
        dump_traces(find_dumps([twice]), "mine")
