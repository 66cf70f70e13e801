from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deprecations import listening


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What :mod:`tests.training_jobs` leaves on disk: a directory per run, that no test changes."""
    root = tmp_path_factory.mktemp("jobs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training_jobs", str(root)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(autouse=True)
def deprecated_calls() -> Iterator[list[str]]:
    """A call of ours that a library calls deprecated fails the test that makes it."""
    with listening() as heard:
        yield heard
    assert not heard, "\n".join(heard)
