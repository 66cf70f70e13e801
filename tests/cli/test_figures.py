"""``opd-probe figures``: what traces allow is drawn, what is missing for the rest is said in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opd_probe.results.kinds import KINDS
from tests.cli.workspace import Caller, files_below, write_lines


@pytest.fixture(scope="module")
def traced(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of two runs on their own samples, step 0 among them, as if they were two seeds; with training logs."""
    from opd_probe.cli.main import main

    root = tmp_path_factory.mktemp("figures")
    for seed, run in enumerate(("good", "bad")):
        place = root / "runs" / f"run-seed{seed}"
        shutil.copytree(workspace / "runs" / run, place)
        log = [{"step": step, "loss": 1 / step, "grad_norm": 2 / step} for step in range(1, 101, 11)]
        (place / "checkpoint-100" / "trainer_state.json").write_text(
            json.dumps({"global_step": 100, "log_history": [*log, {"step": 100, "train_runtime": 3.0}]})
        )
        (place / "opd-probe.yaml").write_text(
            f"teacher: {workspace}/teacher\nstudent: {workspace}/base\nprompts: {workspace}/prompts.jsonl\n"
            "max_new_tokens: 6\n"
        )
    runs = sorted(str(run) for run in (root / "runs").iterdir())
    words = ["overlap", "--ckpts", *runs, "--trace-k", "32", "--out", str(root / "out")]
    assert main(words) == 0
    return root


def test_every_figure_that_the_traces_allow(call: Caller, traced: Path, tmp_path: Path) -> None:
    done = call("figures", "--traces", traced / "out", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    rows = {row["figure"]: row for row in done.rows}
    assert list(rows) == list(KINDS)
    missing = {name: row["missing"] for name, row in rows.items() if row["file"] is None}
    assert set(missing) == {"overview", "recovery", "continuation"}
    assert "--teacher-accuracy" in missing["recovery"]
    assert "models run" in missing["continuation"]
    drawn = {f"figures/{name}.{form}" for name in set(rows) - set(missing) for form in ("pdf", "png")}
    assert files_below(tmp_path) == drawn
    assert all(row["missing"] is None for name, row in rows.items() if name not in missing)
    assert (tmp_path / "figures" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert rows["entropy"]["paper"] == "13, 23"


def test_chosen_figures_of_seeds_with_the_teachers_accuracy(call: Caller, traced: Path, tmp_path: Path) -> None:
    done = call("figures", "--traces", traced / "out", "--only", "recovery", "dynamics", "overview", "--group-seeds",
                "--teacher-accuracy", "teacher=0.9", "--out", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["figure", "overview", "recovery", "dynamics"]
    assert len(files_below(tmp_path)) == 6


@pytest.mark.filterwarnings("ignore:.*intervals resample prompts:opd_probe.OpdProbeWarning")
@pytest.mark.filterwarnings("ignore:reward_auroc:opd_probe.OpdProbeWarning")
def test_seeds_are_grouped_only_when_asked(traced: Path) -> None:
    from opd_probe.options.settings import Options
    from opd_probe.progress import Silent
    from opd_probe.results.kinds import Tables
    from opd_probe.results.measures import Gathered, in_order
    from opd_probe.runs.stored import find_traces

    gathered = Gathered(in_order(find_traces([str(traced / "out")], Options(k=4))), traced / "out", "table", Silent())
    grouped = Tables(gathered, {}, {"teacher": 0.9}, True)
    assert set(grouped.traces["run"]) == {"run"}
    assert sorted(set(grouped.traces["seed"])) == [0, 1]
    assert list(grouped.ends(last=True)["step"]) == [100, 100]
    steps = grouped.steps
    assert len(steps[steps["seed"] == 0]) == len({0, 5, 20, 100} | set(range(1, 101, 11)))
    assert steps["loss"].notna().sum() == 20
    apart = Tables(gathered, {}, {}, False)
    assert set(apart.traces["run"]) == {"run-seed0", "run-seed1"}
    assert "seed" not in apart.traces


def test_without_scores_steps_and_logs(call: Caller, tmp_path: Path) -> None:
    words = ("--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--trace-k", "32", "--out", tmp_path)
    assert call("overlap", "--ckpts", "runs/good/checkpoint-5", *words).code == 0
    done = call("figures", "--traces", tmp_path, "--out", tmp_path / "f", "--format", "json")
    assert done.code == 0, done.err
    missing = {row["figure"]: row["missing"] for row in done.rows}
    drawn = {row["figure"] for row in done.rows if row["file"]}
    assert drawn == {
        "compatibility",
        "dynamics",
        "prompts",
        "overlap-mass",
        "stability",
        "training",
        "mass",
        "positions",
    }
    assert missing["accuracy"] == "accuracy: needs answers or scores in the rollouts"
    assert missing["rewards"] == "needs answers or scores in the rollouts"
    assert missing["entropy"] == "needs traces of several steps"
    assert missing["overlap-mass"] == "curves: need traces of several steps"
    assert missing["stability"].startswith("grad_norm: needs a training log")
    assert missing["mass"] is None


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_a_training_log_that_is_named(call: Caller, traced: Path, tmp_path: Path, form: str) -> None:
    rows = [{"step": step, "loss": 0.5, "grad_norm": 1.0} for step in (1, 2, 3)]
    path = tmp_path / f"log.{form}"
    if form == "jsonl":
        write_lines(path, rows)
    elif form == "csv":
        path.write_text("step,loss,grad_norm\n" + "".join("{step},{loss},{grad_norm}\n".format(**r) for r in rows))
    else:
        path.write_text(json.dumps({"log_history": rows}))
    done = call("figures", "--traces", traced / "out", "--only", "training", "--training-log", f"run-seed0={path}",
                "--out", tmp_path / "f", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert [row["missing"] for row in done.rows] == [None]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--only", "nothing"], "--only nothing: no such figure; expected overview, compatibility"),
        (["--only"], "--only: expected at least one name after it"),
        (["--only", "continuation"], "no figure can be drawn: continuation: needs the teacher's continuations"),
        (["--training-log", "log.json"], "--training-log log.json: expected RUN=FILE"),
        (["--training-log", "other=log.json"], "no trace of run 'other'; the runs are run-seed0, run-seed1"),
        (["--training-log", "run-seed0=nowhere.json"], "training log nowhere.json: no such file"),
        (
            ["--training-log", "run-seed0=prompts.jsonl"],
            "expected rows with step and loss or grad_norm, got id, prompt",
        ),
        (["--training-log", "run-seed0=runs/notes.txt"], "training log runs/notes.txt: cannot be read"),
        (["--teacher-accuracy", "teacher=90"], "--teacher-accuracy teacher=90: expected a share from 0 to 1"),
        (["--teacher-accuracy", "teacher=high"], "expected a share from 0 to 1"),
        (["--teacher-accuracy", "stranger=0.5"], "no trace of that teacher; the teachers are teacher"),
        (["--k", "33"], "this trace holds the top 32 only"),
    ],
)
def test_refuses(call: Caller, traced: Path, tmp_path: Path, words: list[str], part: str) -> None:
    done = call("figures", "--traces", traced / "out", "--out", tmp_path / "f", *words)
    assert done.code == 2
    (line,) = done.errors
    assert part in line
    assert not (tmp_path / "f").exists()


def test_needs_traces(call: Caller, tmp_path: Path) -> None:
    assert "Missing option '--traces'" in call("figures").err
    done = call("figures", "--traces", tmp_path)
    assert done.code == 2
    assert "no trace in it" in done.err
