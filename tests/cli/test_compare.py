"""``opd-probe compare``: two traces, two runs, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import opd_probe
from opd_probe.cli.main import main
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below, write_lines


@pytest.fixture(scope="module")
def traces(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of both runs on the same rollouts; and one of other prompts."""
    root = tmp_path_factory.mktemp("compare")
    words = ["--teacher", str(workspace / "teacher"), "--trace-k", "32"]
    runs = [str(workspace / "runs" / run) for run in ("good", "bad")]
    file = str(workspace / "rollouts.jsonl")
    assert main(["overlap", "--ckpts", *runs, *words, "--rollouts", file, "--out", str(root)]) == 0
    rows = [json.loads(line) | {"prompt_ids": [40, 41]} for line in Path(file).read_text().splitlines()]
    other = write_lines(root / "other.jsonl", rows)
    one = runs[0] + "/checkpoint-5"
    assert main(["overlap", "--ckpts", one, *words, "--rollouts", str(other), "--out", str(root / "other")]) == 0
    return root


def place(traces: Path, run: str, step: int | None = None) -> Path:
    directory = traces / "traces" / run
    return directory if step is None else directory / "teacher" / f"step-{step}.parquet"


@pytest.mark.filterwarnings("ignore:.* prompts:opd_probe.OpdProbeWarning")
@pytest.mark.filterwarnings("ignore:compare. at .* the overlap at k = 4 is one token:opd_probe.OpdProbeWarning")
def test_two_traces(call: Caller, traces: Path, tmp_path: Path) -> None:
    a, b = place(traces, "good", 5), place(traces, "good", 100)
    done = call("compare", a, b, "--k", "4", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    expected = opd_probe.compare(read_trace(a), read_trace(b), 4)
    assert [row["metric"] for row in done.rows] == expected["metric"].tolist()
    for row, (_, want) in zip(done.rows, expected.iterrows(), strict=True):
        for name in ("a", "b", "difference", "difference_lo", "difference_hi"):
            value = None if pd.isna(want[name]) else pytest.approx(want[name])
            assert row[name] == value
        assert (row["run_a"], row["step_a"], row["step_b"], row["n_prompts"]) == ("good", 5, 100, 4)
    assert files_below(tmp_path) == {"compare.csv", "compare.pdf", "compare.png"}
    assert len(pd.read_csv(tmp_path / "compare.csv")) == len(expected)
    table = call("compare", a, b, "--k", "4", "--out", tmp_path).out.splitlines()
    assert table[0].split()[:5] == ["metric", "unit", "a", "b", "difference"]


def test_two_runs_by_their_own_directories(call: Caller, traces: Path) -> None:
    words = ("--out", traces, "--format", "json")
    done = call("compare", "runs/bad", "runs/good", *words)
    assert done.code == 0, done.err
    assert done.rows == call("compare", place(traces, "bad"), place(traces, "good"), *words).rows
    refused = call("compare", "runs/bad", "teacher", *words)
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert "has none of a run teacher" in refused.err


def test_two_runs_step_by_step(call: Caller, traces: Path, tmp_path: Path) -> None:
    done = call("compare", place(traces, "bad"), place(traces, "good"), "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    ratio = [row for row in done.rows if row["metric"] == "overlap_ratio"]
    assert [(row["step_a"], row["step_b"]) for row in ratio] == [(5, 5), (20, 20), (100, 100)]
    assert {(row["run_a"], row["run_b"]) for row in done.rows} == {("bad", "good")}
    assert all(row["difference"] == pytest.approx(row["b"] - row["a"]) for row in ratio)


def test_steps_on_one_side_only_are_left_out_with_a_warning(call: Caller, traces: Path, tmp_path: Path) -> None:
    for step in (5, 20):
        target = tmp_path / "some" / f"step-{step}.parquet"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(place(traces, "good", step).read_bytes())
    done = call("compare", tmp_path / "some", place(traces, "bad"), "--out", tmp_path / "o", "--format", "json")
    assert done.code == 0, done.err
    assert "left out of B, for want of a counterpart: step 100" in done.err
    assert {row["step_a"] for row in done.rows} == {5, 20}


BAD = {
    "no such trace": (["nowhere", "{good}"], ["compare A nowhere: no such path"]),
    "no trace in it": (["{good}", "runs"], ["compare B runs: no trace in it"]),
    "two runs in one": (["{all}", "{good}"], ["compare A: holds traces of the runs bad, good"]),
    "no prompt in common": (["{one}", "{other}"], ["step-5.parquet", "no prompt is in both traces"]),
    "no step in common": (["{some}", "{rest}"], ["no step in common", "A has 5, 20", "B has 100"]),
    "k": (["{good}", "{good}", "--k", "33"], ["k = 33"]),
    "one argument": (["{good}"], ["Missing argument 'B'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(call: Caller, traces: Path, tmp_path: Path, case: str) -> None:
    places = {
        "{good}": place(traces, "good"),
        "{all}": traces / "traces",
        "{one}": place(traces, "good", 5),
        "{other}": traces / "other" / "traces" / "good" / "teacher" / "step-5.parquet",
        "{some}": tmp_path / "some",
        "{rest}": tmp_path / "rest",
    }
    for name, steps in (("some", (5, 20)), ("rest", (100,))):
        (tmp_path / name).mkdir()
        for step in steps:
            (tmp_path / name / f"step-{step}.parquet").write_bytes(place(traces, "good", step).read_bytes())
    words, parts = BAD[case]
    done = call("compare", *[places.get(word, word) for word in words], "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()
