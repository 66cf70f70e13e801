"""What is to be known of a trace is said whenever the trace is used, not only when it is made."""

from __future__ import annotations

from pathlib import Path

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
