"""``report``: a verdict for each run and teacher, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from opd_probe.results.verdict import RULES, SENTENCES
from tests.cli.workspace import Caller, files_below, write_lines
from tests.pages.looking import Page, external_references


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


@pytest.mark.parametrize("k", ["0", "9999"])
def test_a_k_that_traces_cannot_answer_for_is_one_line(call: Caller, out: Path, tmp_path: Path, k: str) -> None:
    done = call("report", "--traces", out, "--k", k, "--out", tmp_path / "rep")
    assert (done.code, len(done.errors)) == (2, 1)
    assert k in done.errors[0]
    assert not (tmp_path / "rep").exists()


def test_nothing_to_report_is_one_line(call: Caller, tmp_path: Path) -> None:
    done = call("report", "--traces", tmp_path)
    assert (done.code, len(done.errors)) == (2, 1)
    assert "no trace in it" in done.err


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_what_is_printed(call: Caller, out: Path, tmp_path: Path) -> None:
    done = call("report", "--traces", out, "--k", "8", "--out", tmp_path, "--format", "json")
    assert files_below(tmp_path) == {"report.html"}
    assert f"wrote {tmp_path}/report.html" in done.err
    page = page_of(tmp_path)
    assert external_references((tmp_path / "report.html").read_text(encoding="utf-8")) == []
    assert [text for _, text in page.all("p", "word")] == [row["verdict"] for row in done.rows]
    assert [text for _, text in page.all("p", "says")] == [row["says"] for row in done.rows]
    for row in done.rows:
        assert all(found["text"] in page.text for found in row["evidence"].values())
    assert page.data["series"] == ["bad", "good"]
    assert [group["name"] for group in page.data["samples"]["groups"]] == ["bad", "good"]
    assert "missing: Prompts: a trace does not hold them; make the report of --ckpts" in done.err


def test_several_teachers_in_one_panel(call: Caller, tmp_path: Path) -> None:
    words = ("--rollouts", "rollouts.jsonl", "--k", "8", "--out", tmp_path, "--teacher", "teacher", "--teacher", "base")
    done = call("report", "--ckpts", "runs/good", *words)
    assert done.code == 0, done.err
    page = page_of(tmp_path)
    assert page.data["series"] == ["good ← base", "good ← teacher"]
    stops = page.data["charts"]["chart-overlap_ratio"]["stops"]
    assert [[series for series, _ in stop["texts"]] for stop in stops] == [[0, 1]] * 3
    texts = [text for _, text in page.all("pre", "prompt")]
    assert texts == [""]  # filled by the script
    assert all(unit["prompt"] for group in page.data["samples"]["groups"] for unit in group["units"])


def test_a_training_log_stands_beside(call: Caller, out: Path, tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", [{"step": step, "loss": 1 / (1 + step)} for step in range(400)])
    words = ("report", "--traces", out, "--k", "8", "--out", tmp_path / "page", "--training-log")
    assert call(*words, f"good={log}").code == 0
    page = page_of(tmp_path / "page")
    stops = page.data["charts"]["chart-loss"]["stops"]
    assert len(stops) == 160
    assert {series for stop in stops for series, _ in stop["texts"]} == {1}
    assert "Means of neighbouring steps" in page.text
    done = call(*words, f"nobody={log}")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "no trace of run 'nobody'" in done.err


def test_the_doctors_findings_when_asked(call: Caller, out: Path) -> None:
    words = ("--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--k", "8", "--out", out)
    assert call("report", "--ckpts", "runs/good", *words).code == 0
    assert "What the doctor finds" not in page_of(out).text
    assert call("report", "--ckpts", "runs/good", *words, "--doctor").code == 0
    page = page_of(out)
    assert {text for _, text in page.all("code")} >= {"tokenizers", "truncation"}
    (expected,) = [
        row["figure"]
        for row in call("doctor", "--ckpts", "runs/good", *words[:6], "--format", "json").rows
        if row["check"] == "tokenizers"
    ]
    assert expected in page.text
    assert call("report", "--ckpts", "runs/good", *words, "--doctor", "--no-text").code == 0
    assert expected not in page_of(out).text
    done = call("report", "--traces", out, "--doctor")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "--doctor and --traces" in done.err


def test_the_papers_values_stand_behind_curves_of_their_k_alone(call: Caller, out: Path, tmp_path: Path) -> None:
    for k, bands in (("16", 3), ("8", 0)):
        assert call("report", "--traces", out, "--k", k, "--out", tmp_path).code == 0
        page = page_of(tmp_path)
        assert len(page.all("rect", "band")) == bands
        assert len(page.all("path", "paper")) == (1 if bands else 0)
        assert len(page.all("path", "lab")) == 2 * bands
        assert ("two runs of opd-probe's lab" in page.text) is bool(bands)
        assert ("are left out" in page.text) is not bool(bands)
