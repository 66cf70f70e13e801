"""How the work of a job is done is decided once, from all that was asked for, and written into its traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.commands.verify import verify
from opd_probe.jobs.pipeline import measure
from opd_probe.jobs.plan import make_plan
from opd_probe.options.request import Request
from opd_probe.progress import Silent
from opd_probe.stats import compiled
from opd_probe.trace import Trace, read_trace
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

WIDTH, STATES = 64, 40


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ways")
    for step in (1, 2, 3):
        save_checkpoint(home / "run" / f"checkpoint-{step}", tiny_model(seed=step), tiny_tokenizer(WIDTH), step=step)
    save_checkpoint(home / "teacher", tiny_model(seed=9), tiny_tokenizer(WIDTH))
    rows = [{"id": str(n), "prompt_ids": [3, 4, 5 + n], "response_ids": [6 + n] * 10} for n in range(STATES // 10)]
    (home / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def traces(home: Path, out: Path, *names: str) -> list[Trace]:
    request = Request(
        ckpts=tuple(str(home / "run" / name) for name in names),
        teachers=(str(home / "teacher"),),
        rollouts=str(home / "rollouts.jsonl"),
        out=str(out),
    )
    return [one.trace for one in measure(make_plan(request), Silent())]


def ways(found: list[Trace]) -> list[Any]:
    return [trace.provenance["ways"] for trace in found]


def test_a_job_decides_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints are long enough together, none is alone; what is stored already counts."""
    monkeypatch.setitem(compiled.PAYS_FROM, "cpu", 1.5 * STATES * WIDTH)
    long, plain = {"compiled": True, "native": False}, {"compiled": False, "native": False}
    whole = traces(home, tmp_path / "whole", "checkpoint-1", "checkpoint-2")
    assert ways(whole) == [long, long]
    places = [trace.path for trace in whole]
    assert places[1] is not None
    before = {column: whole[1].column(column) for column in whole[1].columns}
    places[1].unlink()
    again = traces(home, tmp_path / "whole", "checkpoint-1", "checkpoint-2")
    assert ways(again) == [long, long]
    for column, values in before.items():
        np.testing.assert_array_equal(again[1].column(column), values, err_msg=column)
    # A shorter command uses what is there, however it was made; a job that was short is short when nothing is stored.
    alone = traces(home, tmp_path / "whole", "checkpoint-1")
    assert ways(alone) == [long]
    assert ways(traces(home, tmp_path / "alone", "checkpoint-1")) == [plain]
    longer = traces(home, tmp_path / "alone", "checkpoint-1", "checkpoint-3")
    assert ways(longer) == [plain, long]
    assert verify(str(places[1]), Silent(), states=8)["verdict"] == "agrees"


def test_several_teachers_are_one_job_and_a_program_may_say(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(compiled.PAYS_FROM, "cpu", 1.5 * STATES * WIDTH)
    given = home / "run" / "checkpoint-1", home / "rollouts.jsonl"
    both = opd_probe.replay_teachers(
        given[0], {"a": home / "teacher", "b": home / "run" / "checkpoint-2"}, given[1], tmp_path
    )
    assert [one["compiled"] for one in ways(list(both.values()))] == [True, True]
    assert [one["compiled"] for one in ways([read_trace(tmp_path / f"{name}.parquet") for name in "ab"])] == [True] * 2
    alone = opd_probe.replay(given[0], home / "teacher", given[1])
    asked = opd_probe.replay(given[0], home / "teacher", given[1], compiled=True)
    assert [one["compiled"] for one in ways([alone, asked])] == [False, True]
    for column in alone.columns:
        np.testing.assert_allclose(asked.column(column), alone.column(column), rtol=1e-6, atol=1e-9, err_msg=column)
        np.testing.assert_array_equal(asked.column(column), both["a"].column(column), err_msg=column)
