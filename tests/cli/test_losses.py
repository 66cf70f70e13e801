"""``opd-probe losses``: a stored trace, and what cannot be asked of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import opd_probe
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below

TRACE = Path(__file__).parents[1] / "trace" / "frozen" / "own-samples.parquet"

pytestmark = pytest.mark.filterwarnings("ignore:.* prompts:opd_probe.OpdProbeWarning")


def test_the_rows_are_those_of_the_function_in_every_format(call: Caller, tmp_path: Path) -> None:
    done = call("losses", TRACE, "--k", "4", "--k", "2", "--clamp", "none", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    expected = opd_probe.losses(read_trace(TRACE), [4, 2], clamps=["none"])
    assert [row["k"] for row in done.rows] == [None if pd.isna(k) else k for k in expected["k"]]
    for row, (_, want) in zip(done.rows, expected.iterrows(), strict=True):
        for name in ("loss", "student_mass", "gradient_norm", "cosine_least", "batch_cosine_most", "variance_hi"):
            assert row[name] == (None if pd.isna(want[name]) else pytest.approx(want[name]))
        assert (row["states"], row["n_states"]) == ("own", read_trace(TRACE).n_states)
    assert files_below(tmp_path) == {"losses.csv", "losses.pdf", "losses.png"}
    assert len(pd.read_csv(tmp_path / "losses.csv")) == len(expected)


def test_the_table_shows_bounds_where_there_is_no_value(call: Caller, tmp_path: Path) -> None:
    shutil.copy(TRACE, tmp_path / "one.parquet")
    done = call("losses", tmp_path, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:5] == ["support", "k", "form", "clamp", "batch_cosine"]
    assert " … " in done.out
    assert "verl:" not in done.out
    table = pd.read_csv(tmp_path / "out" / "losses.csv")
    assert set(table["clamp"]) == {"none", "verl:-10:10"}
    assert table["missing"].str.contains("outside the lists").any()


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--k", "65"], "k = 65"),
        (["--k", "0"], "k = 0"),
        (["--clamp", "10"], "expected none, zero, or verl:MIN:MAX"),
        (["--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_input_is_one_line(call: Caller, words: list[str], naming: str) -> None:
    done = call("losses", TRACE, *words)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert naming in line
