"""One model after the other gives the trace of both together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.errors import InputError
from opd_probe.jobs import memory
from opd_probe.jobs.memory import too_large_together
from opd_probe.models.loading import LoadedModel
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

ROWS = [
    {"prompt_ids": [3, 4, 5], "response_ids": [7 + i, 8, 9, 10 + i, 1][: 2 + i % 4], "prompt_id": str(i // 2)}
    for i in range(9)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    save_checkpoint(home / "student", tiny_model(seed=1), tiny_tokenizer())
    save_checkpoint(home / "teacher", tiny_model(80, seed=2, hidden=48, tied=False), tiny_tokenizer())
    save_checkpoint(home / "narrow", tiny_model(seed=1, dtype=torch.bfloat16), tiny_tokenizer())
    return home


@pytest.mark.filterwarnings("ignore:.*outside the shared vocabulary")
@pytest.mark.parametrize("student", ["student", "narrow"])
@pytest.mark.parametrize("to_file", [False, True])
def test_the_trace_is_the_same(home: Path, tmp_path: Path, student: str, to_file: bool) -> None:
    traces = []
    for sequential in (False, True):
        out = tmp_path / f"{sequential}.parquet" if to_file else None
        traces.append(
            opd_probe.replay(
                home / student, home / "teacher", ROWS, k=8, jsd=True, out=out, batch_tokens=12, sequential=sequential
            )
        )
    for name in traces[0].columns:
        np.testing.assert_allclose(traces[1].column(name), traces[0].column(name), rtol=1e-6, atol=1e-6)
    assert traces[1].provenance["student"] == traces[0].provenance["student"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"False.parquet", "True.parquet"} if to_file else set())


@pytest.mark.filterwarnings("ignore:.*outside the shared vocabulary")
def test_only_one_backbone_is_there_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    seen: list[int] = []
    hidden = LoadedModel.hidden

    def counting(self: LoadedModel, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
        gc.collect()
        seen.append(sum(type(thing) is LoadedModel for thing in gc.get_objects()))
        return hidden(self, input_ids, shared)

    gc.collect()  # small models of other tests may lie about
    before = sum(type(thing) is LoadedModel for thing in gc.get_objects())
    monkeypatch.setattr(LoadedModel, "hidden", counting)
    opd_probe.replay(home / "student", home / "teacher", ROWS, k=8, sequential=True)
    assert max(seen) - before == 1
    seen.clear()
    opd_probe.replay(home / "student", home / "teacher", ROWS, k=8, sequential=False)
    assert max(seen) - before == 2


def test_it_is_chosen_when_two_models_do_not_fit_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(home / name / "model.safetensors").stat().st_size for name in ("student", "teacher")]
    pair = home / "student", home / "teacher"
    for free, expected in ((sum(sizes) * 2, False), (sum(sizes), True), (max(sizes), False)):
        monkeypatch.setattr(memory, "free_memory", lambda *_, free=free: free)
        assert too_large_together(pair, None, "cpu") is expected
    monkeypatch.setattr(memory, "free_memory", lambda *_: sum(sizes))
    assert not too_large_together(pair, "bfloat16", "cpu")  # half the bytes
    assert not too_large_together([tiny_model(), home / "teacher"], None, "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda *_: None)
    assert not too_large_together(pair, None, "cpu")


def test_several_teachers_and_one_pass_of_the_student(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    hidden = LoadedModel.hidden

    def counting(self: LoadedModel, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
        if input_ids.shape != (1, 8):  # the loader's own look at a fresh model
            read.append((Path(self.name).name, input_ids.numel()))
        return hidden(self, input_ids, shared)

    monkeypatch.setattr(LoadedModel, "hidden", counting)
    teachers = {"student": home / "student", "narrow one": home / "narrow"}
    options: dict[str, Any] = {"k": 8, "batch_tokens": 12}
    single = [opd_probe.replay(home / "student", teacher, ROWS, **options) for teacher in teachers.values()]
    read.clear()
    for out, sequential in ((None, False), (tmp_path, True)):
        traces = opd_probe.replay_teachers(
            home / "student", teachers, ROWS, out, sequential=sequential, labels={"run": "a"}, **options
        )
        assert list(traces) == list(teachers)
        for trace, expected, name in zip(traces.values(), single, teachers, strict=True):
            assert trace.provenance["labels"] == {"run": "a", "states": "unknown", "teacher": name}
            for column in expected.columns:
                np.testing.assert_allclose(trace.column(column), expected.column(column), rtol=1e-6, atol=1e-6)
        total = sum(tokens for _, tokens in read)
        assert sum(tokens for name, tokens in read if name == "student") == total * 2 / 3  # once as a student
        read.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"student.parquet", "narrow_one.parquet"}
    (tmp_path / "narrow_one.parquet").unlink()
    opd_probe.replay_teachers(home / "student", teachers, ROWS, tmp_path, **options)
    assert {name for name, _ in read} == {"student", "narrow"}
    assert len({sum(tokens for one, tokens in read if one == name) for name in ("student", "narrow")}) == 1
    with pytest.raises(InputError, match="teachers: empty"):
        opd_probe.replay_teachers(home / "student", {}, ROWS)
    with pytest.raises(InputError, match="teachers of type list: expected a mapping of names to models"):
        opd_probe.replay_teachers(home / "student", [home / "narrow"], ROWS)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_without_room_is_one_line(home: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys, opd_probe\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"rows = {ROWS!r}\n"
        "try:\n"
        "    opd_probe.replay(sys.argv[1], sys.argv[2], rows, k=8, out=sys.argv[3], sequential=True)\n"
        "except opd_probe.OpdProbeError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    words = [sys.executable, "-c", code, home / "student", home / "teacher", tmp_path / "trace.parquet"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("OutputError hidden states: 0.0 GB do not fit on the disk of")
    assert list(tmp_path.iterdir()) == []
