"""Work in other processes, on the real recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_probe.lab import recipes
from opd_probe.lab.cache import place_of
from opd_probe.lab.models import build_model, save_model
from opd_probe.lab.runs import Job, read_evaluation
from opd_probe.lab.work import work
from tests.lab.conftest import TINY, shrink


def test_work_is_done_in_another_process_and_only_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job("evaluation", "student", 0)
    for name in ("base", "student"):
        save_model(build_model(TINY, 0), place_of(tmp_path, name, 0))
    work(tmp_path, [job], processes=1)
    assert "[1/1] evaluation student, seed 0 done" in capfd.readouterr().err
    assert len(read_evaluation(tmp_path, "student", 0)) == 256
    work(tmp_path, [job], processes=1)
    assert capfd.readouterr().err == ""


def test_tiny_recipes_have_digests_of_their_own() -> None:
    before = recipes.digest("good", 0)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert recipes.digest("good", 0) != before
    assert recipes.digest("good", 0) == before
