"""The list of checkpoints below a path, where directories are linked, closed, unfinished or of older kinds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_probe.errors import InputError
from opd_probe.models.checkpoints import outermost
from opd_probe.models.directories import closed, entries, subdirectories
from opd_probe.runs.discovery import discover
from opd_probe.runs.inventory import inventory
from tests.tiny import save_checkpoint, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoint-5", tiny_model(layers=1))


def rows(path: Path) -> list[tuple[str, int | None, str | None]]:
    return [(row["path"].removeprefix(f"{path}/"), row["step"], row["refused"]) for row in inventory([str(path)])]


def test_linked_runs_are_listed_and_nothing_is_listed_twice(saved: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "first" / "again").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "first" / "checkpoint-5").mkdir()
    for file in saved.iterdir():
        (tmp_path / "runs" / "first" / "checkpoint-5" / file.name).symlink_to(file)
    (tmp_path / "runs" / "first" / "latest").symlink_to("checkpoint-5")
    (tmp_path / "runs" / "elsewhere").symlink_to(saved.parent)
    assert rows(tmp_path / "runs") == [("elsewhere/checkpoint-5", 5, None), ("first/checkpoint-5", 5, None)]


def test_what_a_trainer_did_not_finish_or_wrote_as_a_pickle(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    files: dict[str, tuple[str, ...]] = {
        "checkpoint-1": ("config.json", "model-00001-of-00002.safetensors"),
        "checkpoint-2": ("config.json", "pytorch_model-00001-of-00002.bin"),
        "checkpoint-3": ("adapter_config.json", "adapter_model.bin"),
        "checkpoint-4": ("optimizer.pt",),
        "step_5": ("rank_0.jsonl",),
    }
    for name, held in files.items():
        (run / name).mkdir(parents=True)
        for file in held:
            (run / name / file).write_text("{}")
    (run / "checkpoint-9").symlink_to(saved)
    said = {place: reason for place, _, reason in rows(run)}
    assert said.pop("checkpoint-9") is None
    expected = (
        "its save did not finish",
        "pytorch_model-00001-of-00002.bin alone, a pickle",
        "adapter_model.bin alone",
        "holds no checkpoint (found optimizer.pt)",
    )
    assert list(said) == list(files)[:4]
    for reason, part in zip(said.values(), expected, strict=True):
        assert part in str(reason)
    with pytest.raises(InputError, match="its save did not finish"):
        discover([str(run / "checkpoint-1")])


def test_a_configuration_that_is_no_json(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    (tmp_path / "config.json").write_text("[1")
    ((_, _, reason),) = rows(tmp_path)
    assert "config.json: not valid JSON" in str(reason)


def test_a_step_stands_for_itself_whatever_lies_beside_it(saved: Path) -> None:
    assert outermost(saved) == saved
    assert outermost(saved.parent) == saved.parent


def test_a_directory_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert (entries(gone), subdirectories(gone)) == ([], [])
    assert closed(gone) == "cannot be opened (No such file or directory)"


@pytest.fixture
def shut(saved: Path, tmp_path: Path) -> Iterator[Path]:
    """A run of which one step may not be opened, one not be searched, and of one a file not be read."""
    modes = {"checkpoint-1": 0o000, "checkpoint-2": 0o444}
    for name in (*modes, "checkpoint-3"):
        (tmp_path / "run" / name).mkdir(parents=True)
        for file in saved.iterdir():
            (tmp_path / "run" / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "run" / "checkpoint-3" / "model.safetensors").chmod(0o000)
    for name, mode in modes.items():
        (tmp_path / "run" / name).chmod(mode)
    if os.access(tmp_path / "run" / "checkpoint-1", os.R_OK):
        pytest.skip("root may open anything")
    yield tmp_path / "run"
    for name in modes:
        (tmp_path / "run" / name).chmod(0o755)


def test_what_may_not_be_opened_is_said(shut: Path) -> None:
    said: dict[str, Any] = {place: reason for place, _, reason in rows(shut)}
    assert said == {
        "checkpoint-1": "cannot be opened (Permission denied)",
        "checkpoint-2": "cannot be searched (Permission denied)",
        "checkpoint-3": "model.safetensors: cannot be read (Permission denied)",
    }
    with pytest.raises(InputError, match=r"checkpoint-1: cannot be opened \(Permission denied\)"):
        discover([str(shut / "checkpoint-1")])
