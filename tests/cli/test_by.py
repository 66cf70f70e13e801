"""``--by FIELD``: rows, curves and files by a field of states or rollouts, in every command that has them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.cli.main import main
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller, files_below, write_lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* prompts?.*:opd_probe.OpdProbeWarning"),
    pytest.mark.filterwarnings("ignore:.*the overlap.* is one token:opd_probe.OpdProbeWarning"),
]
MASK = [1, 1, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def traces(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi-turn rollouts of two data sources, replayed through two checkpoints and two teachers."""
    root = tmp_path_factory.mktemp("by")
    rows = [json.loads(line) for line in (workspace / "rollouts.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row |= {"data_source": "math" if index < 5 else "code", "extra_info": {"level": index % 3}}
        row |= {"response_mask": MASK, "score": float(index % 2)}
    file = write_lines(root / "rollouts.jsonl", rows)
    run = workspace / "runs" / "good"
    words = ["--ckpts", str(run / "checkpoint-5"), "--rollouts", str(file)]
    teachers = ["--teacher", str(workspace / "teacher"), "--teacher", str(workspace / "base")]
    assert main(["mass", *words, *teachers, "--trace-k", "16", "--k", "4", "--out", str(root)]) == 0
    return root


def trace_of(traces: Path, teacher: str) -> Path:
    return traces / "traces" / "good" / teacher / "step-5.parquet"


def test_a_row_for_each_value_and_teacher_whose_states_give_the_total(
    call: Caller, traces: Path, tmp_path: Path
) -> None:
    words = ("--traces", traces, "--k", "4", "--by", "data_source", "--out", tmp_path, "--format", "json")
    done = call("overlap", *words)
    assert done.code == 0, done.err
    assert [(row["teacher"], row["by"], row["group"]) for row in done.rows] == [
        (teacher, "data_source", name) for teacher in ("base", "teacher") for name in ("code", "math")
    ]
    for teacher in ("base", "teacher"):
        total = opd_probe.summarize(read_trace(trace_of(traces, teacher)), 4)
        mine = [row for row in done.rows if row["teacher"] == teacher]
        for name in ("overlap_ratio", "reverse_kl", "student_entropy", "sampled_reward"):
            mean = math.fsum(row[f"{name}_n"] * row[name] for row in mine) / total[f"{name}_n"]
            assert mean == pytest.approx(total[name], rel=1e-12)
    assert files_below(tmp_path) == {"overlap.csv", "overlap.pdf", "overlap.png"}
    assert len(pd.read_csv(tmp_path / "overlap.csv")) == len(done.rows)
    part = opd_probe.groups(read_trace(trace_of(traces, "base")), "data_source")["math"]
    expected = opd_probe.correlations(part).set_index("quantity")
    assert done.rows[1]["spearman_score_sampled_reward"] == pytest.approx(expected.loc["sampled_reward", "spearman"])


@pytest.mark.parametrize(
    ("words", "field", "names"),
    [
        (["mass"], "turn", ["1", "2", "3"]),
        (["align", "--x", "depth"], "correct", ["right", "wrong"]),
        (["overlap", "--variant", "verl"], "extra_info.level", ["0", "1", "2"]),
    ],
)
def test_every_table(
    call: Caller, traces: Path, tmp_path: Path, words: list[str], field: str, names: list[str]
) -> None:
    one = trace_of(traces, "teacher")
    done = call(*words, "--traces", one, "--k", "4", "--by", field, "--out", tmp_path)
    assert done.code == 0, done.err
    place = done.out.splitlines()[0].split().index("group")
    (file,) = [name for name in files_below(tmp_path) if name.endswith(".csv") and "signal" not in name]
    table = pd.read_csv(tmp_path / file, dtype={"group": str})
    assert (place, list(dict.fromkeys(table["group"])), set(table["run"])) == (3, names, {"good"})
    assert any(name.endswith(".png") for name in files_below(tmp_path))


def test_figures_and_losses(call: Caller, traces: Path, tmp_path: Path) -> None:
    done = call("figures", "--traces", traces, "--by", "turn", "--only", "rewards", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "figures/rewards.png" in files_below(tmp_path)
    one = trace_of(traces, "teacher")
    done = call(
        "losses", one, "--k", "4", "--by", "token_source", "--clamp", "none", "--out", tmp_path, "--format", "json"
    )
    assert done.code == 0, done.err
    whole = opd_probe.losses(read_trace(one), [4], clamps=["none"])
    assert {row["group"] for row in done.rows} == {"sampled_ids"}
    assert [row["loss"] for row in done.rows] == [None if pd.isna(x) else pytest.approx(x) for x in whole["loss"]]
    assert {"losses-1.png", "losses.csv"} <= files_below(tmp_path)


def test_compare_each_value_by_itself(call: Caller, traces: Path, tmp_path: Path) -> None:
    a, b = (trace_of(traces, teacher) for teacher in ("base", "teacher"))
    done = call("compare", a, b, "--k", "4", "--by", "data_source", "--out", tmp_path, "--format", "json")
    assert done.code == 0, done.err
    for name in ("code", "math"):
        parts = [opd_probe.groups(read_trace(path), "data_source")[name] for path in (a, b)]
        expected = opd_probe.compare(*parts, 4).set_index("metric").loc["reverse_kl"]
        (row,) = [row for row in done.rows if (row["group"], row["metric"]) == (name, "reverse_kl")]
        assert (row["difference"], row["n_a"]) == (pytest.approx(expected["difference"]), expected["n_a"])


def test_what_rollouts_carry_today_is_added_without_a_replay(call: Caller, traces: Path, workspace: Path) -> None:
    file, path = traces / "rollouts.jsonl", trace_of(traces, "teacher")
    before = read_trace(path)
    rows = [json.loads(line) | {"domain": "sums"} for line in file.read_text().splitlines()]
    write_lines(file, rows)
    given = ("--ckpts", workspace / "runs" / "good" / "checkpoint-5", "--rollouts", file, "--trace-k", "16", "--k", "4")
    teachers = ("--teacher", workspace / "teacher", "--teacher", workspace / "base")
    changed = path.stat().st_mtime_ns
    done = call("mass", *given, *teachers, "--out", traces, "--by", "domain", "--format", "json")
    assert done.code == 0, done.err
    assert {row["group"] for row in done.rows} == {"sums"}
    after = read_trace(path)
    np.testing.assert_array_equal(before.column("teacher_top_logprobs"), after.column("teacher_top_logprobs"))
    assert after.provenance["made_by"] == before.provenance["made_by"]
    written = path.stat().st_mtime_ns
    assert written != changed
    assert call("mass", *given, *teachers, "--out", traces, "--average", "rollout").code == 0
    assert path.stat().st_mtime_ns == written


BAD = {
    "no such field": (["overlap", "--traces", "{traces}", "--by", "mood"], "--by mood: no rollout of trace"),
    "tells all apart": (["mass", "--traces", "{traces}", "--by", "uid"], "no rollout of trace"),
    "a training log": (["overlap", "--traces", "{traces}", "--by", "turn", "--training-log", "x"], "--training-log"),
    "a verdict": (["report", "--traces", "{traces}", "--by", "turn"], "a verdict is of a whole run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(call: Caller, traces: Path, tmp_path: Path, case: str) -> None:
    words, naming = BAD[case]
    done = call(*(word.format(traces=traces) for word in words), "--k", "4", "--out", tmp_path)
    assert (done.code, done.out, len(done.errors)) == (2, "", 1)
    assert naming in done.errors[0]
    assert files_below(tmp_path) == set()
