from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import opd_probe
from opd_probe.errors import OpdProbeError, OutputError
from opd_probe.integrations.probe import make_probe
from opd_probe.jobs.sampling import store_samples
from opd_probe.models.served.dialects import Drawn
from opd_probe.models.served.drafts import Drafts
from opd_probe.output import check_file_writable, check_writable, claimed, make_folder, write_bytes
from opd_probe.results.files import draw_figure, save_figure
from opd_probe.rollouts.files import write_rollouts
from opd_probe.trace import TraceSpool
from opd_probe.trace.schema import STATE_COLUMN
from opd_probe.types import Rollout
from tests.trace.test_files import small_trace


def test_a_file_in_the_way_is_found_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a directory"):
        check_writable(tmp_path / "file" / "below")
    check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


def test_what_stands_in_the_place_of_an_output(tmp_path: Path) -> None:
    """A directory, a file or a link that leads nowhere: a line, or it is replaced where it is ours."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "file").write_text("")
    (tmp_path / "r" / "step-5.json").mkdir(parents=True)
    for name in ("link", "file"):
        with pytest.raises(OutputError, match="not a directory"):
            check_writable(tmp_path / name / "traces")
        with pytest.raises(OutputError, match="cannot be written"):
            make_folder(tmp_path / name / "traces")
    with pytest.raises(OutputError, match=r"cannot be replaced .*directory"):
        store_samples(tmp_path / "r" / "step-5.parquet", [Rollout("a", (3,), (4,))], {})
    columns = [STATE_COLUMN["position"]]
    for name in ("link", "file"):
        spool = TraceSpool([1], columns, 1, tmp_path / name, "key")
        spool.put(0, {"position": np.zeros(1, np.int32)})
        assert TraceSpool([1], columns, 1, tmp_path / name, "key").done.tolist() == [True]


def test_drafts_for_which_there_is_no_room_leave_nothing(tmp_path: Path) -> None:
    drafts, limit = Drafts(tmp_path / "d.partial", "key"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            drafts.keep("a", Drawn([3], [0.0], "stop"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_writable(tmp_path / "new")


def test_addresses_of_no_disk_are_refused_by_all_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace, rollout = small_trace(), Rollout("a", (3,), (4,))
    writes: list[Callable[[str], object]] = [
        trace.save,
        lambda out: write_rollouts(f"{out}/r.jsonl", [rollout]),
        lambda out: opd_probe.replay("student", "teacher", "rollouts.jsonl", out=out),
        lambda out: opd_probe.replay_teachers("student", {"a": "teacher"}, "rollouts.jsonl", out=out),
        lambda out: make_probe(
            tmp_path, prompts=[{"prompt": "3"}], rollouts=None, teacher="t", run=None, out=out, options={}
        ),
    ]
    for write in writes:
        for address in ("s3://bucket/out", "hf://datasets/x", "file:///tmp/x"):
            with pytest.raises(OutputError, match="expected a path on a disk of this machine"):
                write(address)
    assert not any(tmp_path.iterdir())


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a directory"):
        check_file_writable(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "inside").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path / "x", b"content")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_figures_are_saved_twice_and_without_dates(tmp_path: Path) -> None:
    def draw() -> Figure:
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        return figure

    first, second = save_figure(draw(), tmp_path / "a.b"), save_figure(draw(), tmp_path / "c")
    assert [path.name for path in first] == ["a.b.pdf", "a.b.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[0].read_bytes().startswith(b"%PDF")


def test_drawing_leaves_the_search_for_garbage_as_it_was(tmp_path: Path) -> None:
    usual, during = gc.get_threshold(), []

    def draw() -> None:
        during.append(gc.get_threshold())
        raise OpdProbeError("nothing to draw")

    with pytest.raises(OpdProbeError, match="nothing to draw"):
        draw_figure(draw, tmp_path / "a")
    assert during[0] > usual == gc.get_threshold()


def test_one_process_at_a_time_works_in_a_directory(tmp_path: Path) -> None:
    place = tmp_path / "new" / "out"
    code = "import sys, pathlib, opd_probe.output as o\nwith o.claimed(pathlib.Path(sys.argv[1])): print('claimed')"
    command = [sys.executable, "-c", code, str(place)]
    with claimed(place):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "another process is working there" in other.stderr.splitlines()[-1]
        assert other.stdout == ""
    assert not (tmp_path / "new").exists()  # nothing was put there
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "claimed\n"
    with claimed(place):
        (place / "result").write_text("")
    assert (place / "result").is_file()
