from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.workspace import Caller, build


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that no test changes; results go to each test's own directory."""
    torch.set_num_threads(1)
    return build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """Calls the command in this process, from the workspace."""
    return Caller(capsys, workspace, monkeypatch)
