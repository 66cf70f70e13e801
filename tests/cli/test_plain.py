"""No text from outside acts on a terminal, is markup in a figure or a formula in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.text import Text

from opd_probe.cli.printing import print_rows
from opd_probe.cli.progress import StderrProgress
from opd_probe.pages import rendering as page
from opd_probe.plain import csv_cell, visible
from opd_probe.plots.style import house_style, new_figure, render
from opd_probe.results.files import draw_figure, write_csv
from tests.cli.workspace import Caller, write_lines

ESCAPE = "\x1b[31mred\x07"


def test_control_characters_are_spelled_out() -> None:
    assert visible(ESCAPE) == r"\x1b[31mred\x07"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert visible("\x9b2J \u202eabc \udcff") == r"\x9b2J \u202eabc \udcff"
    plain = "ü 中文 𝛼 ← ¶ e\u0301 $x$ a\\b"
    assert visible(plain) == plain


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_quoted(text: str) -> None:
    assert csv_cell(text) == visible(f"'{text}")
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("1=1") == "1=1"


def test_rows_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"run": ESCAPE, "token": "=cmd()", "value": -1.0}]
    for form in ("table", "csv", "json"):
        print_rows(rows, ("run", "token", "value"), form)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\x07" not in out
        if form == "csv":
            (row,) = csv.DictReader(io.StringIO(out))
            assert row == {"run": r"\x1b[31mred\x07", "token": "'=cmd()", "value": "-1.0"}


def test_messages_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    StderrProgress().say(f"error: {ESCAPE}")
    assert capsys.readouterr().err == "error: \\x1b[31mred\\x07\n"


def test_a_table_in_a_file(tmp_path: Path) -> None:
    table = pd.DataFrame({"run": [ESCAPE, "@x"], "step": pd.array([-1, None], dtype="Int64"), "kl": [-0.5, None]})
    table["kind"] = pd.Categorical(["=a", "b"])
    content = write_csv(table, tmp_path / "t.csv").read_text(encoding="utf-8")
    assert content == "run,step,kl,kind\n\\x1b[31mred\\x07,-1,-0.5,'=a\n'@x,,,b\n"


def test_a_page() -> None:
    shown = page._visible({"rollouts": [{"text": f"a\n{ESCAPE}", "n": 1}], "facts": [("Run", "\x9b")]})
    assert shown == {"rollouts": [{"text": "a\n\\x1b[31mred\\x07", "n": 1}], "facts": [["Run", r"\x9b"]]}


@pytest.mark.parametrize("text", [r"$\frac{$ run", "$x^2$", "a$b", r"\$", "$$", r"$\nothing$"])
def test_no_markup_in_a_figure(text: str) -> None:
    with house_style():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.set_title(text)
        axes.plot([1, 2], label=text)
        axes.legend()
        axes.set_xticks([0], [text])
    for form in ("png", "pdf", "svg"):
        assert render(figure, form)  # type: ignore[arg-type]
    assert axes.get_title(loc="left") == text
    assert not any(one.get_parse_math() for one in figure.findobj(Text))


def test_a_figure_that_fails_takes_nothing_along(tmp_path: Path) -> None:
    def draw() -> None:
        raise ValueError("no such glyph\nat all")

    with pytest.warns(UserWarning, match="cannot be drawn"):
        assert draw_figure(draw, tmp_path / "f") == []  # type: ignore[arg-type]


def test_a_run_with_such_a_name(call: Caller, workspace: Path, tmp_path: Path) -> None:
    run = tmp_path / f"=$\\frac{{$ {ESCAPE}"
    run.mkdir()
    (run / "checkpoint-5").symlink_to(workspace / "runs" / "good" / "checkpoint-5")
    rollouts = write_lines(tmp_path / "r.jsonl", [{"prompt_ids": [3, 4], "response_ids": [5, 6, 7]}])
    given = ("overlap", "--ckpts", run, "--teacher", "teacher", "--rollouts", rollouts, "--out", tmp_path / "out")
    done = call(*given, "--format", "json")
    assert done.code == 0, done.err
    assert done.rows[0]["run"] == r"=$\frac{$ \x1b[31mred\x07"
    written = (tmp_path / "out" / "overlap.csv").read_text()
    assert "\x1b" not in done.out + done.err + written
    assert "\n'=$" in written
    assert (tmp_path / "out" / "overlap.png").is_file()
    traces = call("mass", "--traces", tmp_path / "out", "--out", tmp_path / "again")
    assert traces.code == 0, traces.err
    assert "\x1b" not in traces.out + traces.err
    assert json.dumps(done.rows[0]["run"])[1:-1] in json.dumps(traces.out)
