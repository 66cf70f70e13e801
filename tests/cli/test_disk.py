"""No room: one line, exit code 2, finished traces kept and nothing half-written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from opd_probe.trace import read_trace

PROGRAM = shlex.quote(str(Path(sys.executable).with_name("opd-probe")))
WORDS = "overlap --ckpts runs/good --teacher teacher --rollouts rollouts.jsonl --max-states 24"


def shell(command: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=workspace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_failed(done: subprocess.CompletedProcess[str], out: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: output ")
    assert out in line
    assert "free space or choose another" in line


def test_a_limit_on_the_size_of_files(workspace: Path, tmp_path: Path) -> None:
    """``ulimit -f`` in blocks of 1024 bytes: too small for a trace."""
    done = shell(f"ulimit -f 8; exec {PROGRAM} {WORDS} --out {tmp_path}/out", workspace)
    check_failed(done, str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_full_disk(workspace: Path, tmp_path: Path) -> None:
    """A disk of 252 kB, which takes the traces and the table, but not the figures."""
    mount = f"mount -t tmpfs -o size=252k none {tmp_path}"
    alone = "unshare --map-root-user --mount bash -c"
    if shell(f"{alone} {shlex.quote(mount)}", workspace).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    keep = f"code=$?; mkdir {tmp_path}-left; cp -a {tmp_path}/. {tmp_path}-left; exit $code"
    done = shell(f"{alone} {shlex.quote(f'{mount} && {PROGRAM} {WORDS} --out {tmp_path}/out; {keep}')}", workspace)
    check_failed(done, str(tmp_path))
    found = (path for path in Path(f"{tmp_path}-left").rglob("*") if path.is_file())
    left = {path.name: path for path in found if path.parent.name != ".finished"}
    traces = {name for name in left if name.endswith(".parquet")}
    assert traces == {"step-5.parquet", "step-20.parquet", "step-100.parquet"}
    assert all(read_trace(left[name]).n_states for name in traces)
    assert set(left) - traces == {"overlap.csv", "overlap.pdf"}
