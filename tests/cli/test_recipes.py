"""``coldstart`` and ``prompts``: from what is at hand to a file that a trainer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from trl import is_conversational

from opd_probe.commands.prompts import measures, mixed
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, write_lines
from tests.samples import grouped_trace, many_prompts

LONG = " ".join(f"step {n} gives {n * n} ." for n in range(30))


def rollout(name: str, prompt: str, text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {prompt}"}]
    return {"id": name, "prompt_id": prompt, "messages": messages, "response": text, "finish_reason": "stop", **more}


ROLLOUTS = [
    rollout("a", "p", f"{LONG} The answer is 4", answer="4"),
    rollout("b", "p", f"{LONG} the answer is: 4 !", answer="4"),  # says the same
    rollout("c", "p", "Five, as 2 and 3 make five and no other number", answer="4"),
    rollout("d", "p", "cut", finish_reason="length", answer="4"),
    rollout("e", "q", "again and again " * 60, answer="7"),
    rollout("f", "q", "  ", answer="7"),
    rollout("g", "q", "It must be 7", answer="7"),
    rollout("h", "q", "The number is 7", answer="7", finish_reason=None),
]


@pytest.mark.parametrize("layout", ["messages", "prompt-completion"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_cold_start_is_what_a_trainer_reads(call: Caller, tmp_path: Path, layout: str, suffix: str) -> None:
    source, out = write_lines(tmp_path / "teacher.jsonl", ROLLOUTS), tmp_path / f"sft{suffix}"
    done = call("coldstart", source, "-o", out, "--layout", layout, "--correct", "--format", "json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["left_out"] == {"duplicate": 1, "wrong": 1, "cut off": 1, "repetition": 1, "empty": 1}
    assert (said["rollouts"], said["examples"], said["example_prompts"]) == (8, 3, 2)
    assert "of 1 of 3 rollouts it is not known whether they were cut off" in done.err
    kind = "json" if suffix == ".jsonl" else "parquet"
    rows = load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert is_conversational(rows[0])
    last = [(row["messages"] if layout == "messages" else row["prompt"] + row["completion"])[-1] for row in rows]
    assert [turn["content"] for turn in last] == [ROLLOUTS[n]["response"] for n in (0, 6, 7)]
    assert {turn["role"] for turn in last} == {"assistant"}


def test_a_cold_start_of_ids_of_plain_prompts(call: Caller, workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "sft.jsonl"
    refused = call("coldstart", "rollouts.jsonl", "-o", out)
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert "give the tokenizer with --tokenizer" in refused.err
    done = call("coldstart", "rollouts.jsonl", "-o", out, "--tokenizer", "teacher", "--per-prompt", "1")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all({*row} == {"prompt", "completion"} for row in rows)
    given = [json.loads(line) for line in (workspace / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == len({tuple(row["prompt_ids"]) for row in given})


def test_nothing_left_is_one_line_and_no_file(call: Caller, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "teacher.jsonl", ROLLOUTS[3:6])
    done = call("coldstart", source, "-o", tmp_path / "sft.jsonl")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "none of 3 rollouts is left (1 cut off, 1 repetition, 1 empty)" in done.err
    assert not (tmp_path / "sft.jsonl").exists()
    same = call("coldstart", source, "-o", source)
    assert (same.code, "not written over" in same.err) == (2, True)


def test_prompts_are_ranked_by_what_they_teach(call: Caller, tmp_path: Path) -> None:
    trace = grouped_trace(many_prompts(12, seed=3), seed=3)
    trace.save(tmp_path / "trace.parquet")
    texts = [f"how many of {n} are left when {n * n} of them go away" for n in range(12)]
    texts[5] = texts[4].upper() + " ?"
    rows = [{"id": f"p{n:03d}", "prompt": text, "note": n} for n, text in enumerate(texts)]
    file = write_lines(tmp_path / "problems.jsonl", [*rows, {"id": "other", "prompt": "not in the trace"}])
    out = tmp_path / "best.jsonl"
    words = ("prompts", tmp_path / "trace.parquet", "--prompts", file, "-o", out, "--k", "8", "--entropy-floor", "0")
    done = call(*words, "--format", "json")
    assert done.code == 0, done.err
    found = measures(read_trace(tmp_path / "trace.parquet"), 8)
    ranked = sorted(found.rows, key=lambda one: -found.rows[one]["teachability"])
    twin = max("p004", "p005", key=ranked.index)
    assert [row["prompt_id"] for row in done.rows] == [one for one in ranked if one != twin]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[int(one[1:])] for one in ranked
                                                                          if one != twin]  # fmt: skip
    assert "1 of 13 prompts are not in the trace" in done.err
    assert "1 of 12 prompts are nearly the same as a better one" in done.err
    few = call(*words, "--count", "3", "--format", "json").rows
    assert few == done.rows[:3]


def test_the_entropy_stays_above_its_floor() -> None:
    trace = grouped_trace(many_prompts(30, seed=4), seed=4)
    found = measures(trace, 8)
    ranked = sorted(found.rows, key=lambda one: found.rows[one]["student_entropy"])  # the lowest entropies first
    assert mixed(ranked, 5, found, 0.0) == ranked[:5]
    floor = 0.99
    chosen = mixed(ranked, 5, found, floor)
    assert len({*chosen}) == 5
    assert found.entropy(chosen) >= floor * found.entropy(ranked) > found.entropy(ranked[:5])


def test_prompts_of_other_names_are_one_line(call: Caller, tmp_path: Path) -> None:
    grouped_trace(many_prompts(3)).save(tmp_path / "trace.parquet")
    file = write_lines(tmp_path / "problems.jsonl", [{"prompt": "1 + 1"}])
    done = call("prompts", tmp_path / "trace.parquet", "--prompts", file, "-o", tmp_path / "best.jsonl")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "none of its 1 prompts is in" in done.err
    assert not (tmp_path / "best.jsonl").exists()
