"""``--variant``: other trainers' definitions in files and columns that say so."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

import opd_probe
from tests.cli.workspace import Caller, files_below, write_lines


@pytest.fixture(scope="module")
def traced(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of two checkpoints on fixed rollouts."""
    from opd_probe.cli.main import main

    out = tmp_path_factory.mktemp("variants") / "out"
    runs = [str(workspace / "runs" / "good" / f"checkpoint-{step}") for step in (5, 20)]
    words = ["overlap", "--ckpts", *runs, "--teacher", str(workspace / "teacher"), "--out", str(out)]
    assert main([*words, "--rollouts", str(workspace / "rollouts.jsonl")]) == 0
    return out


@pytest.mark.parametrize("variant", ["fireworks", "thunlp:union:none"])
@pytest.mark.filterwarnings("ignore:.*intervals resample prompts:opd_probe.OpdProbeWarning")
def test_overlap(call: Caller, traced: Path, tmp_path: Path, variant: str) -> None:
    done = call("overlap", "--traces", traced, "--variant", variant, "--k", "8", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    (file,) = (traced / "traces" / "good" / "teacher").glob("step-20.parquet")
    wanted = opd_probe.summarize_variant(opd_probe.read_trace(file), variant, 8)
    row = done.rows[1]
    assert {name: row[name] for name in wanted} == pytest.approx(wanted, nan_ok=True)
    assert (row["run"], row["step"], row["states"]) == ("good", 20, "fixed")
    assert "overlap_ratio" not in row  # the paper's are not among them
    stem = f"overlap-{wanted['variant'].replace(':', '-')}"
    assert files_below(tmp_path) == {f"{stem}.{form}" for form in ("csv", "pdf", "png")}
    assert pd.read_csv(tmp_path / f"{stem}.csv")["variant"].tolist() == [wanted["variant"]] * 2


def test_a_curve_that_such_a_trainer_logged_beside_ours(call: Caller, traced: Path, tmp_path: Path) -> None:
    """verl's own file, every fifth step; what it did not log has no column."""
    names = ("distillation/overlap_ratio", "distillation/student_mass")
    log = tmp_path / "verl.jsonl"
    write_lines(log, [{"step": s, "data": {names[0]: 0.1 * s, names[1]: 0.9, "other": 1}} for s in (0, 5, 10, 15)])
    done = call("overlap", "--traces", traced, "--variant", "verl", "--k", "8", "--training-log", log,
                "--out", tmp_path / "out", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert [row[f"{names[0]}_logged"] for row in done.rows] == [0.5, None]  # steps 5 and 20
    assert all(0 < row[names[0]] <= 1 and "distillation/loss_logged" not in row for row in done.rows)
    assert f"{names[1]}_logged" in pd.read_csv(tmp_path / "out" / "overlap-verl.csv")


def test_what_was_logged_is_drawn_dashed_in_its_panel() -> None:
    table = pd.DataFrame({"run": "a", "teacher": "t", "step": [0, 5, 10], "k": 8, "states": "own"})
    table["distillation/loss"], table["distillation/loss_logged"] = [0.3, math.nan, 0.2], [0.5, 0.4, 0.3]
    beside = {"distillation/loss": "distillation/loss_logged"}
    (ax,) = opd_probe.plot_alignment(table, metrics=list(beside), beside=beside).axes
    lines = {str(line.get_gid()).partition(":")[0]: line for line in ax.lines}
    assert lines["distillation/loss"].get_ydata().tolist() == [0.3, 0.2]
    assert lines["distillation/loss_logged"].get_ydata().tolist() == [0.5, 0.4, 0.3]
    assert lines["distillation/loss"].get_linestyle() == "-" != lines["distillation/loss_logged"].get_linestyle()
    assert "solid: measured, dashed: logged" in [text.get_text() for text in ax.texts]


def test_mass_and_align_show_what_they_are_about(call: Caller, traced: Path, tmp_path: Path) -> None:
    for command, there, absent in (
        ("mass", "distillation/teacher_mass_min", "distillation/overlap_ratio"),
        ("align", "distillation/overlap_token_advantage", "distillation/teacher_mass"),
    ):
        done = call(command, "--traces", traced, "--variant", "verl", "--out", tmp_path, "--format", "json")
        assert done.code == 0, done.err
        assert there in done.rows[0]
        assert absent not in done.rows[0]
        assert (tmp_path / f"{command}-verl.png").is_file()


def test_figures_of_several_variants(call: Caller, traced: Path, tmp_path: Path) -> None:
    done = call("figures", "--traces", traced, "--only", "dynamics", "--variant", "verl", "--variant", "fireworks",
                "--out", tmp_path, "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert [row["figure"] for row in done.rows] == ["dynamics", "overlap-verl", "overlap-fireworks"]
    assert (tmp_path / "figures" / "overlap-fireworks.png").is_file()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ["overlap", "--variant", "tinker"],
            "variant 'tinker': expected verl, fireworks, nemo-rl, or thunlp[:SUPPORT",
        ),
        (["overlap", "--variant", ""], "variant '': expected verl, fireworks"),
        (["mass", "--variant", "verl:10"], "log_prob_min_clamp 10 and loss_max_clamp inf: expected the one below 0"),
        (["mass", "--variant", "thunlp:all"], "variant thunlp: support 'all': expected one of only_stu"),
        (["align", "--variant", "verl", "--x", "position"], "--variant and --x position"),
        (
            ["overlap", "--variant", "verl", "--training-log", "prompts.jsonl"],
            "expected rows with step and distillation/overlap_ratio or distillation/overlap_token_advantage, got id",
        ),
        (["figures", "--variant", "nobody"], "variant 'nobody'"),
    ],
)
def test_refuses(call: Caller, traced: Path, tmp_path: Path, words: list[str], part: str) -> None:
    done = call(*words, "--traces", traced, "--out", tmp_path / "no")
    assert done.code == 2
    (line,) = done.errors
    assert part in line
    assert not (tmp_path / "no").exists()
