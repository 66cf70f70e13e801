"""Parts of a trace by a field: which states are in which, and that together they are the whole."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.curves.groups import MOST, UNKNOWN, group_fields
from opd_probe.errors import InputError, TraceError
from opd_probe.metrics import METRICS
from opd_probe.rollouts.fields import carried_fields
from opd_probe.trace import Trace
from tests.samples import grouped_trace

FROZEN = Path(__file__).parents[1] / "trace" / "frozen"

pytestmark = pytest.mark.filterwarnings("ignore:.* prompt:opd_probe.OpdProbeWarning")

MASKS = ("1111", "1100111", "001101", "1", "10101", "0111", "11111", "1011")
"""Of a response each: 1 where the student generated the token."""


def multi_turn(masks: Sequence[str] = MASKS, **columns: Sequence[Any]) -> Trace:
    """Rollouts with these masks, two of a prompt, with fields of their file."""
    rows = [
        {
            "prompt_id": f"p{index // 2}",
            "n_states": mask.count("1"),
            "score": [1.0, 0.0, 1.0, None][index % 4],
            "fields": json.dumps({"domain": "math" if index % 3 else "code", "level": index % 2}) if index else None,
            "finish_reason": "stop" if index % 2 else "length",
            **{name: values[index] for name, values in columns.items()},
        }
        for index, mask in enumerate(masks)
    ]
    positions = [place for mask in masks for place, one in enumerate(mask) if one == "1"]
    return grouped_trace(rows, positions=positions)


def by_hand(mask: str) -> list[tuple[int, int]]:
    """Turn and tool call of each generated token, by walking along the mask."""
    found, runs_of_own, runs_of_others, before = [], 0, 0, ""
    for one in mask:
        if one != before:
            runs_of_own, runs_of_others = runs_of_own + (one == "1"), runs_of_others + (one == "0")
        if one == "1":
            found.append((runs_of_own, runs_of_others))
        before = one
    return found


def test_turns_and_tool_calls_are_what_the_mask_says() -> None:
    trace = multi_turn()
    hand = [pair for mask in MASKS for pair in by_hand(mask)]
    for place, field in enumerate(("turn", "tool_call")):
        parts = opd_probe.groups(trace, field)
        assert list(parts) == sorted({str(pair[place]) for pair in hand})
        for name, part in parts.items():
            where = [index for index, pair in enumerate(hand) if str(pair[place]) == name]
            np.testing.assert_array_equal(part.column("token_id"), trace.column("token_id")[where])
            np.testing.assert_array_equal(part.column("student_top_ids"), trace.column("student_top_ids")[where])
            ids = np.asarray(trace.rollouts.column("rollout_id").to_pylist())[trace.rollout_index()[where]]
            assert (
                np.asarray(part.rollouts.column("rollout_id").to_pylist())[part.rollout_index()].tolist()
                == ids.tolist()
            )


@pytest.mark.parametrize("field", ["turn", "tool_call", "correct", "domain", "level", "finish_reason", "prompt_id"])
def test_parts_weighted_by_their_states_are_the_whole(field: str, tmp_path: Path) -> None:
    for trace in (multi_turn(), multi_turn().save(tmp_path / "stored.parquet")):
        parts = opd_probe.groups(trace, field)
        assert len(parts) > 1
        whole, rows = opd_probe.summarize(trace, k=4), [opd_probe.summarize(part, k=4) for part in parts.values()]
        assert sum(row["n_states"] for row in rows) == whole["n_states"]
        for name, metric in METRICS.items():
            counts = [row[f"{name}_n"] for row in rows]
            assert sum(counts) == whole[f"{name}_n"]
            if metric.summary == "mean" and whole[f"{name}_n"]:
                means = [row[name] for row in rows]
                total = math.fsum(n * mean for n, mean in zip(counts, means, strict=True) if n) / sum(counts)
                assert total == pytest.approx(whole[name], rel=1e-12, abs=1e-15)
        curves = [opd_probe.mass_curve(part) for part in parts.values()]
        assert sum(curve["student_topk_mass_n"][0] for curve in curves) == whole["n_states"]


def test_a_part_is_a_trace_like_any_other(tmp_path: Path) -> None:
    trace = multi_turn().save(tmp_path / "whole.parquet")
    part = opd_probe.groups(trace, "correct")["right"]
    stored = part.save(tmp_path / "part.parquet")
    assert (part.path, part.n_states, part.K) == (trace.path, stored.n_states, trace.K)
    pd.testing.assert_frame_equal(opd_probe.state_metrics(part, k=4), opd_probe.state_metrics(stored, k=4))
    assert list(opd_probe.groups(part, "correct")) == ["right"]
    table = opd_probe.compare(part, opd_probe.groups(trace, "correct")["wrong"], k=4)
    assert table["n_prompts"].iloc[0] > 0


def test_what_does_not_say_is_a_part_of_its_own_and_comes_last() -> None:
    trace = multi_turn()
    assert list(opd_probe.groups(trace, "correct")) == ["right", "wrong", UNKNOWN]
    assert list(opd_probe.groups(trace, "domain")) == ["code", "math", UNKNOWN]
    assert list(opd_probe.groups(trace, "level")) == ["0", "1", UNKNOWN]
    numbers = multi_turn(fields=[json.dumps({"level": level}) for level in (10, 9, -1, 2.5, True, "x", "nan", 10)])
    assert list(opd_probe.groups(numbers, "level")) == ["-1", "2.5", "9", "10", "nan", "true", "x"]


def test_skipped_rollouts_are_of_their_value() -> None:
    trace = multi_turn(masks=("11", "", "111"), skipped=[None, "no response tokens", None])
    lengths = {name: part.rollouts.num_rows for name, part in opd_probe.groups(trace, "finish_reason").items()}
    assert lengths == {"length": 2, "stop": 1}
    assert opd_probe.summarize(opd_probe.groups(trace, "finish_reason")["stop"], k=2)["n_skipped"] == 1
    empty = grouped_trace([{"prompt_id": "p", "n_states": 1}])
    assert list(opd_probe.groups(empty, "turn")) == ["1"]


def test_a_field_that_is_none_is_one_line() -> None:
    trace = multi_turn()
    assert group_fields(trace) == [
        "turn", "tool_call", "correct", "finish_reason", "prompt_id", "token_source", "domain", "level",
    ]  # fmt: skip
    with pytest.raises(InputError, match="--by mood: no rollout of trace in memory has it; expected one of turn, tool"):
        opd_probe.groups(trace, "mood")
    old = grouped_trace([{"prompt_id": "p", "n_states": 2}])
    with pytest.raises(InputError, match="it holds none; give the command that made it again"):
        opd_probe.groups(old, "domain")
    many = grouped_trace([{"prompt_id": f"p{i}", "n_states": 1} for i in range(MOST + 1)])
    with pytest.raises(InputError, match="65 values, as p0, p1, p10; expected at most 64"):
        opd_probe.groups(many, "prompt_id")


@pytest.mark.parametrize("text", ["{", "3", "[" * 5_000])
def test_fields_that_were_damaged_are_one_line(text: str) -> None:
    with pytest.raises(TraceError, match="the fields of its rollouts are no JSON objects"):
        opd_probe.groups(multi_turn(fields=[text] * len(MASKS)), "domain")


def test_traces_of_before_know_their_turns() -> None:
    trace = opd_probe.read_trace(FROZEN / "turns.parquet")
    parts = opd_probe.groups(trace, "turn")
    assert len(parts) > 1
    assert sum(part.n_states for part in parts.values()) == trace.n_states
    with pytest.raises(InputError, match="it holds none; give the command that made it again"):
        opd_probe.groups(trace, "data_source")


def test_what_a_rollout_carries_into_a_trace() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    extra = {
        "data_source": "gsm8k", "extra_info": {"level": 3, "split": {"name": "train"}}, "solved": np.bool_(True),
        "messages": [{"role": "user"}], "solution": "x" * 500, "empty": "", "nothing": None, "nan": math.nan,
        "deep": deep,
    }  # fmt: skip
    text = carried_fields(extra)
    assert text is not None
    assert json.loads(text) == {
        "data_source": "gsm8k", "extra_info.level": 3, "extra_info.split.name": "train", "solved": True,
    }  # fmt: skip
    assert carried_fields({"messages": []}) is None
    wide = json.loads(carried_fields({f"f{i}": i for i in range(5_000)}) or "")
    assert len(wide) == 100
