"""``opd-probe tokens`` on real traces: lists, states and the page against the trace."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.cli.main import main
from opd_probe.metrics.states import state_metrics
from opd_probe.results.states import QUANTITIES
from opd_probe.trace import Trace, read_trace
from tests.cli.workspace import Caller, files_below, write_lines
from tests.pages.looking import BROWSER, Page, external_references, rendered
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

K = 4


@pytest.fixture(scope="module")
def traces(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of one run's own samples, and of a fixed set of rollouts with masked tokens."""
    root = tmp_path_factory.mktemp("tokens")
    run, teacher = str(workspace / "runs" / "good"), str(workspace / "teacher")
    words = ["overlap", "--ckpts", run, "--teacher", teacher, "--out"]
    sampled = ["--prompts", str(workspace / "prompts.jsonl"), "--max-new-tokens", "9", "--num-rollouts", "3"]
    assert main([*words, str(root / "own"), *sampled]) == 0
    rows = [json.loads(line) for line in (workspace / "rollouts.jsonl").read_text().splitlines()]
    for row in rows:
        row["response_mask"] = [1, 1, 0, 0, 1, 1]
    file = write_lines(root / "masked.jsonl", rows)
    assert main([*words, str(root / "fixed"), "--rollouts", str(file)]) == 0
    return root


def trace_of(traces: Path, kind: str, step: int = 5) -> Path:
    return traces / kind / "traces" / "good" / "teacher" / f"step-{step}.parquet"


def document(call: Caller, *words: str | Path) -> dict[str, Any]:
    done = call("tokens", *words, "--k", str(K), "--format", "json")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def row_of(trace: Trace, rollout: str, position: int) -> int:
    index = trace.rollouts.column("rollout_id").to_pylist().index(rollout)
    rows = np.flatnonzero(trace.rollout_index() == index)
    return int(rows[trace.column("position")[rows] == position][0])


@pytest.mark.filterwarnings("ignore:at .* the overlap at k = 4 is one token:opd_probe.OpdProbeWarning")
def test_lists_and_states_are_those_of_the_trace(call: Caller, traces: Path, tmp_path: Path) -> None:
    path = trace_of(traces, "own")
    found = document(call, path, "--out", tmp_path, "--top", "5", "--states", "3")
    trace = read_trace(path)
    table = state_metrics(trace, K)
    assert files_below(tmp_path) == {"tokens.html"}
    assert found["missing"] == []
    worst = found["tokens"]["lowest_reward"][0]
    totals = table.groupby("token_id")["sampled_reward"].sum() / len(table)
    assert (worst["token_id"], worst["contribution"]) == (totals.idxmin(), pytest.approx(totals.min()))
    tokenizer = tiny_tokenizer(64)
    assert worst["token"] == tokenizer.decode([worst["token_id"]])
    assert len(found["tokens"]["reverse_kl"]) == 5
    for kind, column, best in (("reverse_kl", "reverse_kl", "max"), ("lowest_reward", "sampled_reward", "min")):
        states = found["states"][kind]
        assert len(states) == 3
        state = states[0]
        assert state["values"][column] == pytest.approx(getattr(table[column], best)())
        row = row_of(trace, state["rollout_id"], state["position"])
        assert state["token_id"] == trace.column("token_id")[row]
        ids = [entry["token_id"] for entry in state["student_top"]]
        assert ids == trace.column("student_top_ids")[row][:K].tolist()
        others = [entry["token_id"] for entry in state["teacher_top"]]
        assert [entry["shared"] for entry in state["student_top"]] == [token in others for token in ids]
        expected = np.exp(trace.column("teacher_logprobs_at_student_top")[row][:K].astype(float))
        np.testing.assert_allclose([e["q_teacher"] for e in state["student_top"]], expected, rtol=1e-3)
    assert found["summary"]["reverse_kl"] == pytest.approx(opd_probe.summarize(trace, K, resamples=0)["reverse_kl"])


def test_the_numbers_of_the_page_are_those_of_the_trace(call: Caller, traces: Path, tmp_path: Path) -> None:
    path = trace_of(traces, "own")
    found = document(call, path, "--out", tmp_path, "--max-rollouts", "4")
    html = (tmp_path / "tokens.html").read_text(encoding="utf-8")
    page = Page(html)
    data, trace = page.data, read_trace(path)
    table = state_metrics(trace, K, QUANTITIES)
    assert external_references(html) == []
    assert len(found["rollouts"]) == 4
    rows = np.concatenate([np.flatnonzero(table["rollout_id"] == rollout) for rollout in found["rollouts"]])
    assert len(data["states"]) == len(rows) == len(page.all("span", "t"))
    for place, quantity in enumerate(data["quantities"]):
        values = [math.nan if state["v"][place] is None else state["v"][place] for state in data["states"]]
        np.testing.assert_allclose(values, table[quantity["name"]].to_numpy()[rows], rtol=1e-3, atol=1e-9)
    assert [state["token"] for state in data["states"]] == trace.column("token_id")[rows].tolist()
    for state, row in zip(data["states"], rows, strict=True):
        for key, side in (("s", "student"), ("t", "teacher")):
            assert [entry[0] for entry in state[key]] == trace.column(f"{side}_top_ids")[row][:K].tolist()
            np.testing.assert_allclose(
                [entry[1] for entry in state[key]], np.exp(trace.column(f"{side}_top_logprobs")[row][:K]), rtol=1e-3
            )
    tokenizer = tiny_tokenizer(64)
    texts = "".join(text for _, text in page.all("span", "t"))
    response = trace.column("token_id")[rows[: (table["rollout_id"] == found["rollouts"][0]).sum()]]
    assert texts.startswith(tokenizer.decode(response.tolist()))
    assert "4 of 12 responses, evenly spaced in rank from the largest mean reverse KL" in page.text
    assert len(page.all("pre", "prompt")) == 4


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_in_a_browser(call: Caller, traces: Path, tmp_path: Path) -> None:
    document(call, trace_of(traces, "own"), "--out", tmp_path)
    page = Page(rendered(tmp_path / "tokens.html"))
    data = page.data
    shaded = [attributes for attributes, _ in page.all("span", "t")]
    assert len(shaded) == len(data["states"])
    high = data["quantities"][0]["high"]
    for attributes in shaded:
        value = data["states"][int(attributes["data-s"])]["v"][0]
        alpha = float(attributes["style"].removeprefix("--a:").strip(" ;"))
        assert attributes["class"] == "t seq"
        assert alpha == pytest.approx(72 * min(1, value / high), abs=0.06)
    (panel,) = page.all("aside")
    assert panel[0]["id"] == "panel"
    assert "No token is chosen" not in page.text
    assert any(text.startswith("Student's top") for _, text in page.all("caption"))
    (unit,) = [text for attributes, text in page.all("span") if attributes.get("id") == "unit"]
    assert unit == "nats"


def test_another_checkpoint_at_the_same_and_at_other_states(call: Caller, traces: Path, tmp_path: Path) -> None:
    def change(kind: str) -> dict[str, Any]:
        earlier, later = trace_of(traces, kind, 5), trace_of(traces, kind, 100)
        return document(call, later, "--against", earlier, "--out", tmp_path, "--top", "100")

    found = change("fixed")
    assert found["against"]["step"] == 5
    entering = found["tokens"]["entering"]
    assert {"n_states", "net", "per_1000_states"} <= set(entering[0])
    earlier, later = (read_trace(trace_of(traces, "fixed", step)) for step in (5, 100))
    sets = [
        [set(own[:K].tolist()) & set(other[:K].tolist()) for own, other in
         zip(trace.column("student_top_ids"), trace.column("teacher_top_ids"), strict=True)]
        for trace in (earlier, later)
    ]  # fmt: skip
    gone = sum(len(before - after) for before, after in zip(*sets, strict=True))
    come = sum(len(after - before) for before, after in zip(*sets, strict=True))
    assert sum(row["n_states"] for row in entering) == come
    assert sum(row["n_states"] for row in found["tokens"]["leaving"]) == gone
    assert "n_states" not in change("own")["tokens"]["entering"][0]


def test_what_a_trace_does_not_hold_is_said_and_taken_from_the_rollouts(
    call: Caller, traces: Path, tmp_path: Path
) -> None:
    path = trace_of(traces, "fixed")
    found = document(call, path, "--out", tmp_path)
    assert [line.split(":")[0] for line in found["missing"]] == ["Prompts", "Masked tokens"]
    page = Page((tmp_path / "tokens.html").read_text(encoding="utf-8"))
    assert page.all("pre", "prompt") == []
    assert [text for _, text in page.all("span", "other")] == [" [masked] "] * 8
    assert found["states"]["reverse_kl"][0]["before"].startswith("[prompt unknown]")
    again = document(call, path, "--out", tmp_path, "--rollouts", traces / "masked.jsonl")
    assert again["missing"] == []
    page = Page((tmp_path / "tokens.html").read_text(encoding="utf-8"))
    assert len(page.all("pre", "prompt")) == 8
    masked = [text for _, text in page.all("span", "other")]
    assert len(masked) == 16
    assert "[masked]" not in "".join(masked)


def test_without_the_models_ids_are_shown_until_a_tokenizer_is_given(
    call: Caller, traces: Path, tmp_path: Path, workspace: Path
) -> None:
    trace = read_trace(trace_of(traces, "own"))
    for side in ("student", "teacher"):
        trace.provenance[side] = {**trace.provenance[side], "path": str(tmp_path / "gone")}
    trace.provenance["vocabulary"]["special_ids"] = None
    path = tmp_path / "moved.parquet"
    trace.save(path)
    found = document(call, path, "--out", tmp_path)
    assert found["trace"]["tokenizer"] is None
    assert found["tokens"]["reverse_kl"][0]["token"] == f"#{found['tokens']['reverse_kl'][0]['token_id']}"
    assert [line.split(":")[0] for line in found["missing"]] == ["Text", "Prompts", "Special-token gap"]
    assert found["summary"]["special_token_gap"] is None
    given = document(call, path, "--out", tmp_path, "--tokenizer", workspace / "teacher")
    assert [line.split(":")[0] for line in given["missing"]] == ["Prompts"]
    assert given["summary"]["special_token_gap_n"] > 0
    save_checkpoint(tmp_path / "other", tiny_model(64), tiny_tokenizer(words=[f"w{i}" for i in range(61)]))
    done = call("tokens", path, "--out", tmp_path, "--tokenizer", tmp_path / "other", "--format", "json")
    assert "is not the one that the trace was made with" in done.err


def test_table_and_csv(call: Caller, traces: Path, tmp_path: Path) -> None:
    words = (trace_of(traces, "own"), "--out", tmp_path, "--top", "3")
    table = call("tokens", *words)
    assert table.code == 0, table.err
    assert "tokens by their part of the reverse KL" in table.out
    assert f"wrote {tmp_path}/tokens.html" in table.err
    rows = list(csv.DictReader(io.StringIO(call("tokens", *words, "--format", "csv").out)))
    assert [(row["list"], row["rank"]) for row in rows[:3]] == [("reverse_kl", str(rank)) for rank in (1, 2, 3)]


def test_a_directory_with_one_trace(call: Caller, traces: Path, tmp_path: Path) -> None:
    shutil.copy(trace_of(traces, "own"), tmp_path / "one.parquet")
    assert document(call, tmp_path, "--out", tmp_path / "out")["trace"]["step"] == 5


BAD = {
    "no such trace": (["nowhere.parquet"], ["tokens TRACE nowhere.parquet: no such path"]),
    "several traces": (["{own}"], ["holds 3 traces", "step-5.parquet"]),
    "no such earlier trace": (["{trace}", "--against", "nowhere"], ["--against nowhere: no such path"]),
    "no such tokenizer": (["{trace}", "--tokenizer", "runs"], ["tokenizer runs", "no tokenizer files"]),
    "a tokenizer that is nowhere": (["{trace}", "--tokenizer", "nowhere"], ["--tokenizer nowhere: no such path"]),
    "no such rollouts": (["{trace}", "--rollouts", "nowhere.jsonl"], ["nowhere.jsonl: no such file"]),
    "other rollouts": (["{trace}", "--rollouts", "rollouts.jsonl"], ["--rollouts rollouts.jsonl", "has no rollout"]),
    "changed rollouts": (["{fixed}", "--rollouts", "{changed}"], ["is not the one in the trace"]),
    "k": (["{trace}", "--k", "65"], ["k = 65"]),
    "k = 0": (["{trace}", "--k", "0"], ["option --k"]),
    "no rollouts on the page": (["{trace}", "--max-rollouts", "0"], ["--max-rollouts"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(call: Caller, traces: Path, tmp_path: Path, case: str) -> None:
    rows = [json.loads(line) for line in (traces / "masked.jsonl").read_text().splitlines()]
    rows[0]["response_ids"][0] += 1
    places = {
        "{trace}": trace_of(traces, "own"),
        "{own}": traces / "own",
        "{fixed}": trace_of(traces, "fixed"),
        "{changed}": write_lines(tmp_path / "changed.jsonl", rows),
    }
    words, parts = BAD[case]
    done = call("tokens", *[places.get(word, word) for word in words], "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()
