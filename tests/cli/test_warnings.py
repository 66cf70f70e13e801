"""What is to be known of a trace is said whenever the trace is used, not only when it is made."""

from __future__ import annotations

from pathlib import Path

from opd_probe.cli.repeats import Repeats
from opd_probe.trace import read_trace
from tests.cli.workspace import VOCABULARY, Caller
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer


def test_the_warnings_of_a_trace_belong_to_it(call: Caller, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "wide", tiny_model(80, seed=2, hidden=48, tied=False), tiny_tokenizer(VOCABULARY))
    given = ("--ckpts", "runs/good/checkpoint-5", "--teacher", tmp_path / "wide", "--rollouts", "rollouts.jsonl")
    out = tmp_path / "out"

    def said(*words: str | Path) -> list[str]:
        done = call(*words)
        assert done.code == 0, done.err
        return [line for line in done.err.splitlines() if "outside the shared vocabulary" in line]

    (made,) = said("mass", *given, "--out", out)
    assert made.startswith("warning: run good, step 5: ")
    assert "probability of the teacher" in made
    (trace,) = (out / "traces").rglob("*.parquet")
    assert len(read_trace(trace).warnings) == 1
    for words in (
        ("mass", *given, "--out", out),
        ("mass", "--traces", out, "--out", tmp_path / "again"),
        ("figures", "--traces", trace, "--only", "mass", "--out", tmp_path / "again"),
        ("compare", trace, trace, "--out", tmp_path / "again"),
        ("show", trace),
        ("tokens", trace, "--out", tmp_path / "again"),
    ):
        assert said(*words) == [made], words


def test_what_is_said_of_each_checkpoint_is_said_once(call: Caller, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "wide", tiny_model(80, seed=2, hidden=48, tied=False), tiny_tokenizer(VOCABULARY))
    given = ("--ckpts", "runs/good", "--teacher", tmp_path / "wide", "--rollouts", "rollouts.jsonl")
    done = call("mass", *given, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    first, others = (line for line in done.err.splitlines() if "run good, step 5: " in line)
    assert "lies outside the shared vocabulary" in first
    assert others.startswith("warning: 2 more of the kind ‘run good, step 5: ")
    assert [value.split(", ")[0] for value in others.rpartition(", with ")[2].split("; ")] == ["20", "100"]


def test_what_differs_is_listed() -> None:
    said: list[str] = []
    repeats = Repeats(said.append)
    for text in (
        "step 5: 1.5% of 'a'",
        "step 5: 1.5% of 'a'",
        "another",
        "step 20: 1.5% of 'b'",
        "step 30: 1.5e-3% of 'a'.",
    ):
        repeats.show(text)
    assert said == ["warning: step 5: 1.5% of 'a'", "warning: another", "warning: step 30: 1.5e-3% of 'a'."]
    repeats.close()
    assert said[3:] == ["warning: 1 more of the kind ‘step 5: 1.5% of 'a'’, with 20, 'b'"]
