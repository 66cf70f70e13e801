"""``opd-probe ingest``, and the same files wherever rollouts are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

import opd_probe
from opd_probe.errors import OpdProbeWarning
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below, write_lines
from tests.rollouts.left_behind import WRITERS, opd_row, slime_sample, swift_row, verl_row
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

REPLAY = ("--teacher", "teacher", "--rollouts")


def test_what_was_recognised_is_said(call: Caller, tmp_path: Path) -> None:
    source = WRITERS["slime"](tmp_path)
    done = call("ingest", source, "-o", tmp_path / "r.parquet", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "kind": "slime", "files": 2, "rollouts": 4, "prompts": 1, "steps": [9, 10], "steps_are": None,
        "without_step": 0, "token_source": "sampled_ids", "tokens": 16, "masked_tokens": 2, "with_score": 4,
        "with_answer": 4, "graded": 0, "with_logprobs": 4, "with_teacher_logprobs": 2, "truncated": 2,
        "skipped": {"aborted": 2},
    }  # fmt: skip
    assert done.err.splitlines() == [
        f"warning: rollouts {source}: left out 2 of 6 (2 aborted)",
        f"warning: rollouts {source}: left out, since they hold no rollouts of training: eval_9.pt",
        f"wrote {tmp_path / 'r.parquet'}",
    ]
    table = call("ingest", source, "-o", tmp_path / "r.parquet").out
    assert ["skipped.aborted", "2"] in [line.split() for line in table.splitlines()]


def test_answers_are_graded_where_there_is_no_score(call: Caller, tmp_path: Path) -> None:
    source = WRITERS["opd-gen-vllm"](tmp_path, [opd_row(), opd_row(seed=1, response="8"), opd_row(answer=None)])
    done = call("ingest", source, "-o", tmp_path / "r.jsonl", "--format", "json")
    said = json.loads(done.out)
    assert (said["graded"], said["token_source"]) == (2, "retokenized")
    assert (said["tokens"], said["masked_tokens"], said["truncated"]) == (None, None, None)  # unknown is not zero
    assert [rollout.score for rollout in read_rollouts(tmp_path / "r.jsonl")] == [1.0, 0.0, None]


def test_scores_are_graded_anew_when_asked(call: Caller, tmp_path: Path) -> None:
    source = WRITERS["verl"](tmp_path, [verl_row(score=-1.0, output="so \\boxed{7}")])
    for words, score in (((), -1.0), (("--grade",), 1.0)):
        assert call("ingest", source, "-o", tmp_path / "r.jsonl", *words).code == 0
        assert {rollout.score for rollout in read_rollouts(tmp_path / "r.jsonl")} == {score}


def test_the_score_is_the_field_that_is_named(call: Caller, tmp_path: Path) -> None:
    source = WRITERS["ms-swift"](tmp_path, [swift_row(Format=[0.25, 0.5])])
    assert call("ingest", source, "-o", tmp_path / "r.jsonl").code == 0
    assert {rollout.extra["Format"] for rollout in read_rollouts(tmp_path / "r.jsonl")} == {0.25, 0.5}
    assert call("ingest", source, "-o", tmp_path / "r.jsonl", "--score", "Format").code == 0
    assert [rollout.score for rollout in read_rollouts(tmp_path / "r.jsonl")] == [0.25, 0.5]
    done = call("ingest", source, "-o", tmp_path / "s.jsonl", "--score", "reward")
    assert done.code == 2
    assert "no such field; its numbers are MathAccuracy, advantages, entropy, Format" in done.err


def test_a_file_in_the_directory_that_is_read_can_be_made_anew(call: Caller, tmp_path: Path) -> None:
    folder = WRITERS["verl"](tmp_path)
    done = [call("ingest", folder, "-o", folder / "rollouts.jsonl", "--format", "json") for _ in range(2)]
    assert [one.code for one in done] == [0, 0]
    assert [(said := json.loads(one.out))["kind"] + str(said["files"]) for one in done] == ["verl2", "verl2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("broken.jsonl", "-o", "r.jsonl"), "broken.jsonl, line 2: not valid JSON"),
        (("broken.jsonl", "-o", "r.csv"), "--out r.csv: expected the .jsonl or .parquet file to write"),
        (("nowhere", "-o", "r.jsonl"), "rollouts nowhere: no such file or directory"),
        (
            ("strange.jsonl", "-o", "r.jsonl"),
            "strange.jsonl: not recognised by its fields (a, b); expected one of verl",
        ),
        (("strange.jsonl", "-o", "r.jsonl", "--kind", "foo"), "--kind foo: no such kind; expected verl, opd-gen-vllm"),
        (("strange.jsonl", "-o", "r.jsonl", "--kind", "verl"), "line 1: no input; expected input, output, as verl"),
        (("good.jsonl", "ids.jsonl", "-o", "r.jsonl"), "kinds are not pooled, so read them one by one"),
        (("good.jsonl", "-o", "good.jsonl"), "--out good.jsonl: is a file to be read, which is not written over"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    call: Caller, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "broken.jsonl").write_text(json.dumps(verl_row()) + "\n{\n")
    write_lines(tmp_path / "strange.jsonl", [{"a": 1, "b": 2}])
    write_lines(tmp_path / "good.jsonl", [verl_row()])
    write_lines(tmp_path / "ids.jsonl", [{"prompt_ids": [3], "response_ids": [4]}])
    before = files_below(tmp_path)
    call.directory = tmp_path
    done = call("ingest", *words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert files_below(tmp_path) == before


def test_the_file_and_what_was_made_of_it_are_replayed_alike(call: Caller, workspace: Path, tmp_path: Path) -> None:
    samples = [slime_sample(index=i, tokens=[3, 4 + i, 5, 6, 7, 1]) for i in range(3)]
    cases = {"ids": WRITERS["slime"](tmp_path / "ids", samples), "text": WRITERS["opd-gen-vllm"](tmp_path / "text")}
    tokenizer = tiny_tokenizer(64, chat_template=CHAT_TEMPLATE)
    student = save_checkpoint(tmp_path / "student", tiny_model(64, seed=3), tokenizer)
    for name, source in cases.items():
        stored = tmp_path / f"{name}.parquet"
        assert call("ingest", source, "-o", stored).code == 0
        with pytest.warns(OpdProbeWarning):
            one, other = (opd_probe.replay(student, workspace / "teacher", place, k=8) for place in (source, stored))
        assert one.n_states > 0
        for column in ("student_logprob", "teacher_logprob", "reverse_kl", "token_id", "position"):
            np.testing.assert_array_equal(one.column(column), other.column(column))
        graded = one.rollouts.drop_columns(["score"]) if name == "text" else one.rollouts
        assert graded.equals(other.rollouts.select(graded.column_names))
        assert one.rollouts.column("score").to_pylist() == other.rollouts.column("score").to_pylist()


def test_masked_tokens_are_no_states_and_the_samplers_log_probs_come_along(
    call: Caller, workspace: Path, tmp_path: Path
) -> None:
    WRITERS["prime-rl"](tmp_path)
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", tmp_path / "good" / "checkpoint-5")
    (tmp_path / "good" / "opd-probe.yaml").write_text(f"teacher: {workspace / 'teacher'}\nrollouts: ../token_exports\n")
    done = call(
        "overlap", "--ckpts", tmp_path / "good", "--step-offset", "2", "--out", tmp_path / "o", "--format", "json"
    )
    assert done.code == 0, done.err
    row = done.rows[0]
    assert (row["states"], row["token_source"], row["n_states"], row["n_rollouts"]) == ("own", "sampled_ids", 6, 2)
    trace = read_trace(tmp_path / "o" / "traces" / "good" / "teacher" / "step-5.parquet")
    assert trace.column("position").tolist() == [0, 1, 3] * 2
    assert trace.column("token_id").tolist() == [5, 6, 1] * 2
    np.testing.assert_array_equal(trace.column("sampler_logprob"), np.array([-0.5, -1.5, np.nan] * 2, dtype=np.float32))


def test_re_tokenised_text_is_marked_wherever_it_is_shown(call: Caller, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.jsonl", [{"id": "a", "prompt_id": "p", "prompt": "3 4", "response": "5 6"}])
    same = {"id": "a", "prompt_id": "p", "prompt_ids": [6, 7], "response_ids": [8, 9]}
    ids = write_lines(tmp_path / "ids.jsonl", [same])
    for run, rollouts in (("good", text), ("bad", ids)):
        done = call("overlap", "--ckpts", f"runs/{run}/checkpoint-5", *REPLAY, rollouts, "--out", tmp_path / run)
        assert done.code == 0, done.err
        assert ("re-tokenised text, whose states may differ" in done.err) is (run == "good")
        assert ("retokenized" in done.out) is (run == "good")
        assert ("token_source" in done.out.splitlines()[0]) is (run == "good")
        assert set(pd.read_csv(tmp_path / run / "overlap.csv")["token_source"]) == {
            "retokenized" if run == "good" else "sampled_ids"
        }
    traces = [tmp_path / run / "traces" for run in ("good", "bad")]
    mixed = "1 of 2 traces are of re-tokenised text (of good), the others of sampled ids"
    both = call("overlap", "--traces", *traces, "--out", tmp_path / "o", "--format", "json")
    assert {row["run"]: row["token_source"] for row in both.rows} == {"good": "retokenized", "bad": "sampled_ids"}
    assert mixed in both.err
    compared = call("compare", *traces, "--out", tmp_path / "o")
    assert "compare: A is of re-tokenised text, B of sampled ids" in compared.err
    assert mixed in call("figures", "--traces", *traces, "--only", "mass", "--out", tmp_path / "o").err
    trace = traces[0] / "good" / "teacher" / "step-5.parquet"
    page = call("tokens", trace, "--rollouts", text, "--out", tmp_path / "o", "--format", "json")
    assert json.loads(page.out)["trace"]["token_source"] == "retokenized"
    assert json.loads(page.out)["missing"] == []
    assert "re-tokenised text, not as sampled" in (tmp_path / "o" / "tokens.html").read_text(encoding="utf-8")
    shown = call("show", trace, "--format", "json")
    assert json.loads(shown.out)["token_source"] == "retokenized"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TRL's distillation and GRPO trainers leave when they log completions."""
    root = tmp_path_factory.mktemp("trained")
    tokenizer = tiny_tokenizer(64, chat_template=CHAT_TEMPLATE)
    save_checkpoint(root / "student", tiny_model(64, seed=0), tokenizer)
    shared = {
        "max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "max_completion_length": 4, "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
        "logging_steps": 1, "log_completions": True, "num_completions_to_print": 1,
    }  # fmt: skip
    DistillationTrainer(
        model=str(root / "student"),
        teacher_model=tiny_model(64, seed=1),
        args=DistillationConfig(output_dir=str(root / "distilled"), **shared),
        train_dataset=Dataset.from_list([{"prompt": f"{i} {i + 1}"} for i in range(8)]),
        processing_class=tokenizer,
    ).train()
    chats = [{"prompt": [{"role": "user", "content": f"{i} {i + 1}"}], "answer": str(i)} for i in range(8)]
    GRPOTrainer(
        model=str(root / "student"),
        reward_funcs=_length_reward,
        args=GRPOConfig(output_dir=str(root / "grpo"), num_generations=2, **shared),
        train_dataset=Dataset.from_list(chats),
        processing_class=tokenizer,
    ).train()
    evaluated = {**shared, "max_steps": 4, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    GRPOTrainer(
        model=str(root / "student"),
        reward_funcs=_length_reward,
        args=GRPOConfig(
            output_dir=str(root / "evaluated"), num_generations=2, per_device_eval_batch_size=2, **evaluated
        ),
        train_dataset=Dataset.from_list(chats),
        eval_dataset=Dataset.from_list([{**chats[0], "prompt": [{"role": "user", "content": "50 51"}]}]),
        processing_class=tokenizer,
    ).train()
    return root


def _length_reward(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    return [float(len(completion[0]["content"]) > 8) for completion in completions]


def test_completions_of_trls_distillation_trainer(call: Caller, trained: Path, tmp_path: Path) -> None:
    done = call("ingest", trained / "distilled" / "completions", "-o", tmp_path / "r.parquet", "--format", "json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["kind"], said["files"], said["rollouts"], said["steps"]) == ("trl", 2, 4, [1, 2])
    assert (said["token_source"], said["with_score"]) == ("retokenized", 0)
    assert said["steps_are"].endswith("replay them with --step-offset 1")
    over = call("overlap", "--ckpts", trained / "distilled" / "checkpoint-2", "--teacher", trained / "student",
                "--rollouts", tmp_path / "r.parquet", "--out", tmp_path / "o", "--format", "json")  # fmt: skip
    assert over.code == 0, over.err
    assert "--step-offset" not in over.err  # it is not known of the stored file, but of the trainer's own
    run, teacher = trained / "distilled", trained / "student"
    direct = call("overlap", "--ckpts", run / "checkpoint-2", "--teacher", teacher, "--rollouts", run / "completions",
                  "--out", tmp_path / "p", "--dry-run")  # fmt: skip
    assert "completions: rollouts of step S + 1 are the samples of checkpoint S: replay them with" in direct.err
    assert (over.rows[0]["states"], over.rows[0]["n_rollouts"], over.rows[0]["token_source"]) == (
        "own",
        2,
        "retokenized",
    )


def test_what_trl_samples_in_an_evaluation_is_no_training_rollout(trained: Path) -> None:
    """It writes them over the batch of the step, of which its state says that it was evaluated at."""
    folder = trained / "evaluated" / "completions"
    prompts = {n: pd.read_parquet(folder / f"completions_{n:05d}.parquet")["prompt"].astype(str) for n in (1, 2, 3, 4)}
    assert {n for n, texts in prompts.items() if texts.str.contains("50 51").any()} == {2, 4}
    with pytest.warns(OpdProbeWarning, match="of steps with an evaluation"):
        kept = read_rollouts(folder)
    assert {rollout.step for rollout in kept} == {1, 3}
    assert all("50 51" not in str(rollout.extra["messages"]) for rollout in kept)


def test_a_run_of_trl_is_searched_for_its_completions(call: Caller, trained: Path, tmp_path: Path) -> None:
    assert list((trained / "distilled").glob("checkpoint-*/optimizer.pt"))
    done = call("ingest", trained / "distilled", "-o", tmp_path / "r.parquet", "--format", "json")
    assert (json.loads(done.out)["kind"], json.loads(done.out)["steps"]) == ("trl", [1, 2])


def test_completions_of_trls_grpo_trainer(trained: Path) -> None:
    rollouts = read_rollouts(trained / "grpo" / "completions")
    assert {rollout.step for rollout in rollouts} == {1, 2}
    assert {rollout.score for rollout in rollouts} <= {0.0, 1.0}
    for rollout in rollouts:
        assert rollout.score == rollout.extra["_length_reward"]
        assert rollout.score == float(len(rollout.response or "") > 8)
        assert rollout.extra["messages"][0]["role"] == "user"
        assert "special_tokens" not in rollout.extra
