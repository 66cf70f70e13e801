"""What is printed, and where."""

from __future__ import annotations

import io
import json
import sys

import pytest

from opd_probe.cli import printing, progress
from opd_probe.cli.progress import StderrProgress

ROWS = [
    {"run": "a", "step": 5, "x": 0.25, "x_lo": 0.125, "x_hi": 0.5, "kl": None, "infinite": {"kl": "inf"}},
    {"run": "b", "step": None, "x": None, "x_lo": None, "x_hi": None, "kl": 1.0},
]


def test_a_table_shows_intervals_infinities_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_rows(ROWS, ("run", "step", "x", "kl"), "table")
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "step", "x", "kl"]
    assert first.split(maxsplit=2) == ["a", "5", "0.25 [0.12, 0.50]    inf"]
    assert second.split() == ["b", "-", "-", "1.000"]


def test_csv_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_rows(ROWS, (), "csv")
    assert capsys.readouterr().out == "run,step,x,x_lo,x_hi,kl\na,5,0.25,0.125,0.5,inf\nb,,,,,1.0\n"
    printing.print_rows(ROWS, (), "json")
    assert json.loads(capsys.readouterr().out) == ROWS


def test_a_narrow_terminal_gets_no_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    printing.print_rows(ROWS, ("run", "step", "x", "kl"), "table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "5", "0.2500", "inf"]
    assert max(map(len, lines)) <= 30


WIDE = [
    {"run": f"a-run-of-a-long-name-{index}", "step": index, "teacher": "one-teacher", "k": 16, "states": "own",
     "overlap_ratio": 0.5 + index / 100, "student_overlap_mass": 0.9, "reverse_kl": 0.25, "n_states": 6155 + index}
    for index in range(3)
]  # fmt: skip
COLUMNS = (
    "run", "step", "teacher", "k", "states", "overlap_ratio", "student_overlap_mass", "reverse_kl", "n_states",
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_narrow_table_says_what_is_common_once_and_keeps_numbers_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    printing.print_rows(WIDE, COLUMNS, "table")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(f"{row['overlap_ratio']:.4f}" in text for row in WIDE)
    if width < 100:
        assert lines[0] == "teacher one-teacher · k 16 · states own"
        assert text.count("one-teacher") == 1
    left = {name for name in COLUMNS[5:] if name.split("_")[-1] not in text.split("no room for")[0]}
    assert all(name in text for name in left)  # what has no room is named


def test_counts_beyond_k_stand_right(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"run": "a", "student_k_for_0.97_median": "7"}, {"run": "b", "student_k_for_0.97_median": ">64"}]
    printing.print_rows(rows, ("run", "student_k_for_0.97_median"), "table")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "a                            7",
        "b                          >64",
    ]


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    assert list(printing.flatten(nested)) == [("a.b", 1), ("a.c.d", "[1, 2]"), ("e", None)]


def test_plain_progress_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = StderrProgress()
    reporter.begin("replay a")
    reporter.update(1, 4)
    assert capsys.readouterr().err == ""  # short work is silent
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    reporter.update(1000, 4000)
    line = capsys.readouterr().err
    assert line.startswith("replay a: 1,000 of 4,000 (25%) after 0:00, about 0:0")
    assert line.endswith(" left\n")


def test_live_progress_stays_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    reporter = StderrProgress()
    reporter.begin("replay a")
    reporter.update(1, 4)
    reporter.say("warning: something")
    reporter.begin("replay b")
    reporter.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "warning: something" in captured.err


@pytest.mark.parametrize(
    ("format", "expected"), [("table", r"l\xe4ufe"), ("csv", r"l\xe4ufe"), ("json", r"l\u00e4ufe")]
)
def test_an_encoding_without_a_character(format: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    stream = io.TextIOWrapper(held, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with printing.careful_stdout():
        printing.print_rows([{"run": "läufe"}], ("run",), format)
        print("Σ")
    assert sys.stdout is stream
    assert stream.errors == "strict"
    said = held.getvalue().decode("ascii")
    assert expected in said
    assert said.endswith("\\u03a3\n")


def test_what_wraps_nowhere_looks_as_where_a_library_lays_it_out() -> None:
    """Wide and combining characters take the places that a terminal gives them, and no name becomes a picture."""
    names = ["學生", "e\u0301tude", "a:key:b", "😀 run", "plain", ""]
    rows = [{"run": name, "n_states": 7**index, "x": 0.5} for index, name in enumerate(names)]
    columns = printing._cells(rows, ("run", "n_states", "x"), intervals=True)
    own = printing._render(columns, printing.WIDE, gap=2)
    assert own == printing._broken(columns, ["run", "n_states", "x"], printing.WIDE, 2, None)
    assert own[1] == "學生            1  0.5000"
    assert own[3].startswith("a:key:b")
