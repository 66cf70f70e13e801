"""``report``: a verdict for each run and teacher, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from opd_probe.results.verdict import RULES, SENTENCES
from tests.cli.workspace import Caller


@pytest.fixture(scope="module")
def out(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of two runs."""
    from opd_probe.cli.main import main

    directory = tmp_path_factory.mktemp("traces")
    words = ["overlap", "--ckpts", str(workspace / "runs" / "good"), str(workspace / "runs" / "bad"), "--teacher",
             str(workspace / "teacher"), "--rollouts", str(workspace / "rollouts.jsonl"), "--out", str(directory),
             "--k", "8"]  # fmt: skip
    assert main(words) == 0
    return directory


def test_a_verdict_for_each_run_with_its_evidence(call: Caller, out: Path, tmp_path: Path) -> None:
    done = call("report", "--traces", out, "--k", "8", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    assert [(row["run"], row["teacher"], row["steps"]) for row in done.rows] == [
        ("bad", "teacher", [5, 20, 100]), ("good", "teacher", [5, 20, 100]),
    ]  # fmt: skip
    for row in done.rows:
        assert row["verdict"] in SENTENCES
        assert {*row["evidence"]} == {row["verdict"], *row["qualifiers"]}
        assert {*row["qualifiers"]} <= {*RULES}
        assert {"off_policy", "few_prompts"} <= {*row["qualifiers"]}  # one fixed file of rollouts
        measured = row["evidence"][row["verdict"]]
        summary = call("overlap", "--traces", out, "--k", "8", "--out", tmp_path, "--format", "json").rows
        first, _, last = [one for one in summary if one["run"] == row["run"]]
        assert measured["overlap_ratio"]["first"]["value"] == pytest.approx(first["overlap_ratio"], rel=1e-12)
        assert measured["overlap_ratio"]["last"]["hi"] == pytest.approx(last["overlap_ratio_hi"], rel=1e-9)


def test_table_and_csv_say_the_same(call: Caller, out: Path, tmp_path: Path) -> None:
    words = ("report", "--traces", out, "--k", "8", "--out", tmp_path)
    rows = call(*words, "--format", "json").rows
    table = call(*words).out
    assert all(row["verdict"] in table and row["says"] in table for row in rows)
    cells = list(csv.DictReader(io.StringIO(call(*words, "--format", "csv").out)))
    assert [json.loads(row["qualifiers"]) for row in cells] == [row["qualifiers"] for row in rows]


def test_from_checkpoints_the_same_traces_serve(call: Caller, out: Path) -> None:
    words = ("--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--k", "8", "--out", out, "--format", "json")
    made = call("report", "--ckpts", "runs/good", *words)
    assert made.code == 0, made.err
    stored = call("report", "--traces", out, "--k", "8", "--out", out, "--format", "json").rows
    assert made.rows == [row for row in stored if row["run"] == "good"]


def test_nothing_to_report_is_one_line(call: Caller, tmp_path: Path) -> None:
    done = call("report", "--traces", tmp_path)
    assert (done.code, len(done.errors)) == (2, 1)
    assert "no trace in it" in done.err
