from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


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
