"""Responses that were sampled otherwise than they are scored: every command says so, in rows, titles and one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.curves.sampling import sampling_label, sampling_remark
from opd_probe.plots import plot_overlap
from opd_probe.rollouts.sampling import sampling_of, sampling_words
from opd_probe.trace import Trace, read_trace
from tests.cli.workspace import Caller
from tests.plots.examples import COMPATIBLE, INCOMPATIBLE, run_rows
from tests.samples import grouped_trace, many_prompts

REPLAY = ("--teacher", "teacher", "--k", "4", "--rollouts")
HOT = "temperature 0.7, top_p 0.95"


def write(path: Path, **fields: Any) -> Path:
    rows = [
        {"id": str(n), "prompt_id": f"p{n}", "prompt_ids": [6, 7 + n], "response_ids": [8, 9, 10], **fields}
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def traces(call: Caller, tmp_path: Path) -> dict[str, Path]:
    """Of one checkpoint: scores at 1, sampled at 1, and by a sampler cut and cooled, as two layouts say it."""
    files = {
        "good": write(tmp_path / "hot.jsonl", sampling_params={"temperature": 0.7, "top_p": 0.95, "top_k": -1}),
        "bad": write(tmp_path / "plain.jsonl", temperature=1.0, top_p=1.0),
    }
    for run, rollouts in files.items():
        done = call("overlap", "--ckpts", f"runs/{run}/checkpoint-5", *REPLAY, rollouts, "--out", tmp_path / run)
        assert done.code == 0, done.err
        assert ("were not sampled as they are scored" in done.err) is (run == "good")
        assert (HOT in done.out) is (run == "good")
        assert ("sampling" in done.out.splitlines()[0]) is (run == "good")
    return {run: tmp_path / run / "traces" for run in files}


def test_every_command_says_it(call: Caller, traces: dict[str, Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o")
    line = f"responses of 1 of 2 traces were not sampled as they are scored (good step 5: {HOT})"
    both = ("--traces", *traces.values(), *out)
    for command in ("overlap", "mass", "align"):
        done = call(command, *both, "--format", "json")
        assert done.code == 0, done.err
        assert done.err.count(line) == 1, command
        assert {row["run"]: row["sampling"] for row in done.rows} == {"good": HOT, "bad": "as scored"}, command
    done = call("align", *both, "--x", "depth", "--format", "json")
    assert {row["run"]: row["sampling"] for row in done.rows} == {"good": HOT, "bad": "as scored"}
    done = call("overlap", *both, "--variant", "verl", "--format", "json")
    assert {row["run"]: row["sampling"] for row in done.rows} == {"good": HOT, "bad": "as scored"}
    assert call("figures", *both, "--only", "mass").err.count(line) == 1
    compared = call("compare", *traces.values(), *out, "--format", "json")
    assert f"compare: responses of 1 of 2 traces were not sampled as they are scored (A: {HOT})" in compared.err
    assert {(row["sampling_a"], row["sampling_b"]) for row in compared.rows} == {(HOT, "as scored")}
    trace = traces["good"] / "good" / "teacher" / "step-5.parquet"
    page = call("tokens", trace, *out, "--format", "json")
    assert f"(good step 5: {HOT})" in page.err
    assert json.loads(page.out)["trace"]["sampling"] == HOT
    assert HOT in (tmp_path / "o" / "tokens.html").read_text(encoding="utf-8")
    shown = call("show", trace, "--format", "json")
    assert json.loads(shown.out)["sampling"] == HOT
    assert f"(good step 5: {HOT})" in shown.err
    assert read_trace(trace).rollouts.column("sampling").to_pylist() == [HOT] * 3


def test_scored_at_the_samplers_temperature_it_is_as_scored(call: Caller, tmp_path: Path) -> None:
    rollouts = write(tmp_path / "hot.jsonl", temperature=0.7)
    words = ("overlap", "--ckpts", "runs/good/checkpoint-5", *REPLAY, rollouts, "--out", tmp_path / "o")
    done = call(*words, "--temperature", "0.7", "--format", "json")
    assert done.rows[0]["sampling"] == "as scored"
    assert "not sampled as" not in done.err


def test_our_own_samples_say_how_they_were_drawn(call: Caller, tmp_path: Path) -> None:
    words = ("overlap", "--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--k", "4", "--prompts",
             "prompts.jsonl", "--max-new-tokens", "4", "--num-rollouts", "1")  # fmt: skip
    for temperature in ("1", "0.5"):
        out = tmp_path / temperature
        done = call(*words, "--sample-temperature", temperature, "--out", out, "--format", "json")
        assert done.code == 0, done.err
        label = done.rows[0]["sampling"]
        assert label == "as scored" if temperature == "1" else label.startswith("temperature 0.5")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, None),
        ({"temperature": None, "top_p": "high"}, None),
        ({"temperature": 1, "top_p": 1.0, "top_k": 0, "min_p": 0}, "temperature 1"),
        ({"sampling_params": {"temperature": 0.6, "top_k": 20}}, "temperature 0.6, top_k 20"),
        ({"gen_kwargs": {"do_sample": False, "until": ["x"]}}, "temperature 0"),
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1"),
        ({"temperature": True, "sampling": "hot"}, None),
        ({"temperature": float("nan")}, None),
    ],
)
def test_what_rows_say(row: dict[str, Any], words: str | None) -> None:
    assert sampling_words(sampling_of(row)) == words


def with_sampler(trace: Trace, shift: float) -> Trace:
    arrays = {name: trace.column(name) for name in trace.columns}
    arrays["sampler_logprob"] = (arrays["student_logprob"] + np.float32(shift)).astype(np.float32)
    arrays["sampler_logprob"][0] = np.nan
    return Trace(trace.rollouts, trace.provenance, arrays=arrays)


def test_the_samplers_own_log_probabilities_tell_too() -> None:
    trace = grouped_trace(many_prompts(25))
    assert sampling_label(trace) is None
    assert sampling_label(with_sampler(trace, 0.04)) == "as scored"
    off = with_sampler(trace, -0.3)
    assert sampling_label(off) == "sampler off by 0.3 nats"
    with pytest.warns(opd_probe.OpdProbeWarning, match=r"\(B: sampler off by 0\.3 nats\).*may come from that alone"):
        opd_probe.compare(trace, off, 8, resamples=0, metrics=["reverse_kl"])
    remark = sampling_remark([("x", "temperature 0.7"), ("y", "temperature 0.7")])
    assert remark is not None
    assert "of 2 of 2 traces" in remark
    assert "alone" not in remark
    assert sampling_remark([("x", None), ("y", "as scored")]) is None


def test_titles_and_names_of_lines() -> None:
    def drawn(*labels: str | None) -> tuple[str, set[str]]:
        rows = [run_rows("a", COMPATIBLE), run_rows("b", INCOMPATIBLE)]
        table = pd.concat([pd.DataFrame(r).assign(sampling=s) for r, s in zip(rows, labels, strict=True)])
        figure = plot_overlap(table)
        return figure.get_suptitle(), {text.get_text() for text in figure.axes[0].texts}

    title, names = drawn(HOT, HOT)
    assert title.endswith(f"student-visited states (sampled at {HOT})")
    assert names >= {"a", "b"}
    title, names = drawn("temperature 0.7", "as scored")
    assert title.endswith("(on-policy, some of them sampled at temperature 0.7)")
    assert names >= {"a (sampled at temperature 0.7)", "b"}
    for labels in ((None, None), ("as scored", None)):
        assert drawn(*labels)[0].endswith("(on-policy)")
