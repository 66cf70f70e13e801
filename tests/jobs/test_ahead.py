"""What is read while something else is worked on: once, in another thread, and without a word."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from opd_probe.jobs import ahead
from opd_probe.jobs.ahead import ReadAhead
from opd_probe.models import digests
from opd_probe.models.digests import weights_digest, weights_files
from opd_probe.types import Checkpoint
from tests.tiny import save_checkpoint, tiny_model


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Checkpoint]:
    places = [save_checkpoint(tmp_path / f"checkpoint-{step}", tiny_model(layers=1, seed=step)) for step in (1, 2, 3)]
    return [Checkpoint(str(place)) for place in places]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The folders of files that are hashed, and whether the main thread did it."""
    seen: list[tuple[str, bool]] = []
    digest = digests.file_digest

    def counting(file: Path) -> bytes:
        seen.append((file.parent.name, threading.current_thread() is threading.main_thread()))
        return digest(file)

    monkeypatch.setattr(digests, "file_digest", counting)
    return seen


def _work(checkpoints: list[Checkpoint], loaded: tuple[bool, ...] = (True, True, True)) -> list[str]:
    reader = ReadAhead(list(zip(checkpoints, loaded, strict=True)))
    found = []
    for number, checkpoint in enumerate(checkpoints):
        with reader.during(number):
            found.append(weights_digest(checkpoint))
    return found


def test_all_but_the_first_are_read_beside_the_work(checkpoints: list[Checkpoint], hashed: list[Any]) -> None:
    found = _work(checkpoints)
    assert len(set(found)) == 3
    names = [Path(one.path).name for one in checkpoints]
    assert set(hashed) == {(names[0], True), (names[1], False), (names[2], False)}
    assert len(hashed) == sum(len(weights_files(one)) for one in checkpoints)  # each file once


def test_of_one_whose_traces_are_there_the_digest_alone(
    checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(ReadAhead, "_into_memory", lambda _, file: read.append(file.parent.name))
    _work(checkpoints, (True, False, True))
    assert set(read) == {Path(checkpoints[2].path).name}


def test_without_room_nothing_is_read(
    checkpoints: list[Checkpoint], hashed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "free_memory", lambda _: 1000)
    assert len(set(_work(checkpoints))) == 3
    assert all(main for _, main in hashed)


def test_what_cannot_be_read_is_said_when_it_is_its_turn(checkpoints: list[Checkpoint]) -> None:
    lost = [checkpoints[0], Checkpoint("nowhere"), checkpoints[2]]
    reader = ReadAhead([(one, True) for one in lost])
    with reader.during(0):
        first = weights_digest(lost[0])
    with reader.during(1):
        assert first == weights_digest(checkpoints[0])
    with pytest.raises(KeyboardInterrupt), reader.during(1):
        raise KeyboardInterrupt
    assert reader._stopped.is_set()  # and what is being read is left at that
