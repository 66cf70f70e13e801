"""``opd-probe lab``: what there is, what is done, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_probe.cli.main import main
from opd_probe.lab.experiments import EXPERIMENTS


def test_list_shows_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["experiment"] for row in rows] == list(EXPERIMENTS)
    assert all(row["figures"] and row["question"] for row in rows)


def test_status_counts_what_is_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "lab",
        "status",
        "cold_start",
        "--seeds",
        "0",
        "--seeds",
        "1",
        "--cache",
        str(tmp_path),
        "--format",
        "json",
    ]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["seed"], row["done"]) for row in rows] == [(0, 0), (1, 0)]
    assert all(row["missing"] == "model base" and row["of"] > 5 for row in rows)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["status", "warm_start"], "experiment 'warm_start': unknown"),
        (["run", "warm_start"], "experiment 'warm_start': unknown"),
        (["run", "cold_start", "--seeds", "-1"], "seeds -1"),
        (["tables"], "no finished run"),
    ],
)
def test_bad_input_is_one_line(words: list[str], what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "figures"
    where = ["--cache", str(tmp_path / "cache")] + ([] if words[0] == "status" else ["--out", str(out)])
    assert main(["lab", *words, *where]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert what in line
    assert not out.exists()
    assert not (tmp_path / "cache").exists()
