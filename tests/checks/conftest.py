from __future__ import annotations

import pytest
import torch

from tests.checks.clinic import Clinic, build


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    """A healthy pair and its rollouts, which no test changes."""
    torch.set_num_threads(1)
    return build(tmp_path_factory.mktemp("clinic"))
