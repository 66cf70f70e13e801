"""``opd-probe verify``: what is whole and agrees, what differs, and what is no longer there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import opd_probe
from opd_probe.commands.verify import differences
from opd_probe.errors import TraceError
from opd_probe.trace import Trace, read_trace
from opd_probe.trace.table import is_sealed
from opd_probe.types import LengthRule
from tests.cli.workspace import Caller, write_lines
from tests.models.served import cases
from tests.models.served.recorded_server import serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.models.test_lengths import sharp
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORDS = ("--teacher", "teacher", "--k", "4", "--trace-k", "8", "--jsd")


def said(call: Caller, trace: Path, *more: str | Path, code: int = 0) -> dict[str, Any]:
    done = call("verify", trace, "--json", *more)
    assert done.code == code, done.err
    return dict(json.loads(done.out))


@pytest.fixture(scope="module")
def out(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of rollouts from a file, and of own samples."""
    from opd_probe.cli.main import main

    place = tmp_path_factory.mktemp("verify")
    home = [*("--ckpts", str(workspace / "runs" / "good" / "checkpoint-20")), "--teacher", str(workspace / "teacher")]
    rest = ["--k", "4", "--trace-k", "8", "--jsd", "--format", "json"]
    assert (
        main(["overlap", *home, *rest, "--rollouts", str(workspace / "rollouts.jsonl"), "--out", str(place / "a")]) == 0
    )
    prompts = ["--prompts", str(workspace / "prompts.jsonl"), "--max-new-tokens", "8"]
    assert main(["overlap", *home, *rest, *prompts, "--dtype", "bfloat16", "--out", str(place / "b")]) == 0
    return place


def trace_of(out: Path) -> Path:
    (file,) = (path for path in (out / "traces").rglob("*.parquet"))
    return file


def test_what_was_replayed_agrees(call: Caller, out: Path) -> None:
    file = trace_of(out / "a")
    found = said(call, file, "--states", "20")
    assert (found["verdict"], found["states"], found["missing"], found["differing"]) == ("agrees", 20, [], [])
    assert found["checksums"] == "agree"
    assert found["tolerance"] == 1e-4
    assert set(found["largest_difference"]) > {"reverse_kl", "jsd", "student_top_logprobs", "teacher_entropy"}
    assert max(value for value in found["largest_difference"].values() if value is not None) < 1e-4
    made = found["made_by"]
    assert made["rollouts"].endswith("rollouts.jsonl")
    assert made["settings"]["k"] == 8
    assert made["command"]
    assert {made[side]["device"] for side in ("student", "teacher")} == {"cpu"}
    assert {"torch", "transformers", "opd-probe", "python"} <= set(made["software"])
    table = call("verify", file, "--states", "3")
    assert "verdict" in table.out
    assert "agrees" in table.out


def test_own_samples_in_bfloat16_agree(call: Caller, out: Path) -> None:
    found = said(call, trace_of(out / "b"))
    assert (found["verdict"], found["missing"], found["tolerance"]) == ("agrees", [], 0.2)
    assert found["states"] == min(64, read_trace(trace_of(out / "b")).n_states)


def test_a_number_that_was_changed_differs(call: Caller, out: Path, tmp_path: Path) -> None:
    trace = read_trace(trace_of(out / "a"))
    arrays = {name: np.array(trace.column(name)) for name in trace.columns}
    arrays["reverse_kl"][5] += 0.01
    arrays["student_top_ids"][7, 0] = 63 - arrays["student_top_ids"][7, 0]
    Trace(trace.rollouts, trace.provenance, arrays=arrays).save(tmp_path / "t.parquet")
    found = said(call, tmp_path / "t.parquet", "--states", "1000", code=1)
    assert (found["verdict"], found["differing_states"]) == ("differs", 2)
    assert found["differing"][0]["columns"] == ["reverse_kl"]
    assert "student_top_ids" in found["differing"][1]["columns"]


def test_without_its_models_the_checksums_are_what_is_left(
    call: Caller, out: Path, workspace: Path, tmp_path: Path
) -> None:
    trace = read_trace(trace_of(out / "a"))
    provenance = {**trace.provenance, "student": {**trace.provenance["student"], "path": "/nowhere/at/all"}}
    moved = Trace(trace.rollouts, provenance, arrays={name: trace.column(name) for name in trace.columns})
    moved.save(tmp_path / "t.parquet")
    found = said(call, tmp_path / "t.parquet")
    assert (found["verdict"], found["states"], found["checksums"]) == ("checksums alone", 0, "agree")
    assert found["models"]["student"] == "not there"
    assert "/nowhere/at/all" in found["missing"][0]
    assert said(call, tmp_path / "t.parquet", "--student", workspace / "runs/good/checkpoint-20")["verdict"] == "agrees"
    other = said(call, tmp_path / "t.parquet", "--student", workspace / "runs/bad/checkpoint-20", code=1)
    assert other["models"]["student"] == "other weights than then"
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "t.parquet").write_bytes(content)
    damaged = call("verify", tmp_path / "t.parquet", "--states", "0")
    assert (damaged.code, damaged.out) == (2, "")
    assert "damaged" in damaged.err


def test_other_rollouts_are_refused_and_none_are_said(call: Caller, out: Path, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt_ids": [3, 4, 5], "response_ids": [9, 9, 9, 9, 9, 9]} for i in range(8)]
    done = call("verify", trace_of(out / "a"), "--rollouts", write_lines(tmp_path / "o.jsonl", rows))
    assert (done.code, len(done.errors)) == (2, 1)
    assert "is not the one in the trace" in done.err
    trace = read_trace(trace_of(out / "a"))
    arrays = {name: trace.column(name) for name in trace.columns}
    Trace(trace.rollouts, {**trace.provenance, "made_by": None}, arrays=arrays).save(tmp_path / "t.parquet")
    found = said(call, tmp_path / "t.parquet")
    assert found["verdict"] == "checksums alone"
    assert "--rollouts FILE" in found["missing"][0]


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serving(SGLangAnswers(cases.teacher())) as server:
        yield server.url


def test_a_served_teacher(call: Caller, served: str, tmp_path: Path) -> None:
    student = save_checkpoint(tmp_path / "student", cases.student(), tiny_tokenizer(cases.WIDTH))
    file = write_lines(tmp_path / "r.jsonl", cases.rollouts())
    opd_probe.replay(student, served, file, k=cases.K, out=tmp_path / "t.parquet")
    found = said(call, tmp_path / "t.parquet")
    assert (found["verdict"], found["missing"]) == ("agrees", [])
    assert found["largest_difference"]["reverse_kl"] is None
    stored = read_trace(tmp_path / "t.parquet")
    provenance = {**stored.provenance, "teacher": {**stored.provenance["teacher"], "path": None, "source": None}}
    Trace(stored.rollouts, provenance, arrays={n: stored.column(n) for n in stored.columns}).save(
        tmp_path / "g.parquet"
    )
    alone = said(call, tmp_path / "g.parquet")
    assert alone["verdict"] == "agrees"
    assert "teacher: was a model in memory" in alone["missing"][0]
    assert set(alone["largest_difference"]) >= {"student_entropy", "student_logprob"}
    assert not any("teacher" in name for name in alone["largest_difference"])


def test_adapters_teacher_prompts_and_several_teachers(call: Caller, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = tiny_tokenizer(chat_template=CHAT_TEMPLATE)
    base = save_checkpoint(tmp_path / "base", tiny_model(seed=1), tokenizer)
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(seed=1), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "checkpoint-4")
    chat = [{"role": "user", "content": "3 4"}]
    rows = [{"id": f"r{i}", "prompt_ids": [3, 4], "response_ids": [5 + i, 6, 1], "messages": chat} for i in range(3)]
    file = write_lines(tmp_path / "r.jsonl", rows)
    teachers = ("--teacher", base, "--teacher-template", "own", "--teacher-system", "7 8", "--k", "4")
    done = call("overlap", "--ckpts", tmp_path / "checkpoint-4", *teachers, "--rollouts", file, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    for trace in (tmp_path / "o" / "traces").rglob("*.parquet"):
        found = said(call, trace)
        assert (found["verdict"], found["missing"], found["states"]) == ("agrees", [], 9)
    given = opd_probe.replay(
        tmp_path / "checkpoint-4", base, file, k=4, teacher_prompts=[[3], [4], [5]], out=tmp_path / "p.parquet"
    )
    found = said(call, tmp_path / "p.parquet")
    assert found["verdict"] == "agrees"
    assert "given by a program" in found["missing"][0]
    assert "teacher_entropy" not in found["largest_difference"]
    shutil.rmtree(base)
    assert said(call, Path(str(given.path)))["verdict"] == "checksums alone"


ROWS = [
    {"id": f"r{i}", "prompt_ids": [3, 4 + i], "response_ids": [(7 * i + j) % 60 + 3 for j in range(30)]}
    for i in range(3)
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``student`` and ``teacher`` on disk, and ``r.jsonl``."""
    root = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("student", "teacher")):
        save_checkpoint(root / name, tiny_model(seed=seed), tiny_tokenizer())
    write_lines(root / "r.jsonl", ROWS)
    return root


@pytest.mark.parametrize("rule", ["prefix", "whole", "server"])
def test_factors_of_another_length(call: Caller, pair: Path, tmp_path: Path, rule: LengthRule) -> None:
    """Of a student whose factors change among the states."""
    student = save_checkpoint(tmp_path / "long", sharp("longrope", 3), tiny_tokenizer())  # type: ignore[arg-type]
    how: dict[str, Any] = {"k": 8, "temperature": 0.7, "length_factors": rule}
    opd_probe.replay(student, pair / "teacher", pair / "r.jsonl", out=tmp_path / "t.parquet", **how)
    found = said(call, tmp_path / "t.parquet", "--states", "1000")
    assert (found["verdict"], found["states"], found["missing"]) == ("agrees", 90, [])
    stored = read_trace(tmp_path / "t.parquet")
    other = {"prefix": "server", "whole": "prefix", "server": "prefix"}[rule]
    factors = {**stored.provenance["length_factors"], "rule": other}
    changed = Trace(stored.rollouts, {**stored.provenance, "length_factors": factors}, arrays=arrays_of(stored))
    changed.save(tmp_path / "u.parquet")
    assert said(call, tmp_path / "u.parquet", "--states", "1000", code=1)["verdict"] == "differs"


def test_a_gguf_student_and_several_teachers_one_after_the_other(call: Caller, pair: Path, tmp_path: Path) -> None:
    from tests.models.gguf_files import write_gguf

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    student = write_gguf(tmp_path / "s.gguf", LlamaForCausalLM(config), "llama")
    how: dict[str, Any] = {
        "k": 8,
        "jsd": True,
        "temperature": 1.3,
        "sequential": True,
        "tokenizer": str(pair / "teacher"),
    }
    teachers = {"one": pair / "teacher", "other": pair / "student"}
    opd_probe.replay_teachers(student, teachers, pair / "r.jsonl", tmp_path / "t", **how)
    for name in teachers:
        found = said(call, tmp_path / "t" / f"{name}.parquet")
        assert (found["verdict"], found["states"], found["missing"]) == ("agrees", 64, [])


def test_what_was_replaced_since(call: Caller, pair: Path, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        shutil.copytree(pair / name, tmp_path / name)
    file = write_lines(tmp_path / "r.jsonl", ROWS)
    trace = tmp_path / "t.parquet"
    opd_probe.replay(tmp_path / "student", tmp_path / "teacher", file, k=4, out=trace)
    write_lines(file, [{**row, "prompt_ids": [5, 5]} for row in ROWS])
    assert said(call, trace, code=1)["verdict"] == "differs"
    write_lines(file, [{**row, "response_ids": [5] * 30} for row in ROWS])
    refused = call("verify", trace)
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert "is not the one in the trace" in refused.err
    file.unlink()
    gone = said(call, trace)
    assert (gone["verdict"], gone["models"]) == ("checksums alone", {"student": "there", "teacher": "there"})
    assert "--rollouts FILE" in gone["missing"][0]
    assert said(call, trace, "--rollouts", pair / "r.jsonl")["verdict"] == "agrees"
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    without = said(call, trace, "--rollouts", pair / "r.jsonl")
    assert (without["verdict"], without["models"]["teacher"]) == ("agrees", "not there")
    assert "the teacher's columns: it is not there" in without["missing"]
    assert not any("teacher" in name for name in without["largest_difference"])
    again = said(call, trace, "--rollouts", pair / "r.jsonl", "--teacher", tmp_path / "moved")
    assert (again["verdict"], again["models"]["teacher"]) == ("agrees", "there")
    save_checkpoint(tmp_path / "student", tiny_model(seed=7), tiny_tokenizer())
    other = said(call, trace, "--rollouts", pair / "r.jsonl", "--teacher", tmp_path / "moved", code=1)
    assert (other["verdict"], other["models"]["student"]) == ("differs", "other weights than then")


def test_a_trace_that_goes_while_it_is_looked_at(pair: Path, tmp_path: Path) -> None:
    trace = opd_probe.replay(pair / "student", pair / "teacher", pair / "r.jsonl", k=4, out=tmp_path / "t.parquet")
    assert is_sealed(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(TraceError, match="cannot be read"):
        is_sealed(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="no longer there"):
        trace.column("reverse_kl")


def arrays_of(trace: Trace) -> dict[str, Any]:
    return {name: trace.column(name) for name in trace.columns}


def test_ids_of_one_probability_may_change_places() -> None:
    before = {
        "student_top_ids": np.array([[1, 2, 3]]),
        "student_top_logprobs": np.array([[-1.0, -2.0, -2.00001]], dtype=np.float32),
        "teacher_logprobs_at_student_top": np.array([[-1.0, -5.0, -6.0]], dtype=np.float32),
    }
    fresh = {
        "student_top_ids": np.array([[1, 3, 4]]),
        "student_top_logprobs": np.array([[-1.0, -2.0, -2.00001]], dtype=np.float32),
        "teacher_logprobs_at_student_top": np.array([[-1.0, -6.0, -9.0]], dtype=np.float32),
    }
    worst, wrong = differences(before, fresh, 1e-4)
    assert not any(bad.any() for bad in wrong.values())
    assert worst["teacher_logprobs_at_student_top"] == 0.0
    fresh["student_top_ids"] = np.array([[2, 3, 4]])
    assert differences(before, fresh, 1e-4)[1]["student_top_ids"].tolist() == [True]
