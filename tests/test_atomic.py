"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_probe.atomic import whole_file


def test_the_file_appears_at_the_end_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with whole_file(path) as place:
            place.write_text(text)
            assert place.parent == path.parent
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failed_one(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("kept")

    def fail() -> None:
        with whole_file(path) as place:
            place.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_place_that_cannot_be_is_the_error_that_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = whole_file(tmp_path / "file" / "inside.txt")
    with pytest.raises(FileExistsError):
        place.__enter__()
