"""Small models run on one thread, and the process gets its threads back."""

from __future__ import annotations

import pytest
import torch

from opd_probe.stats.threads import SMALL, fitting_threads


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield None
    torch.set_num_threads(before)


def test_a_small_model_has_one_thread_while_it_works() -> None:
    with fitting_threads(torch.zeros(10, 4)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error() -> None:
    with pytest.raises(KeyError), fitting_threads(torch.zeros(10, 4)):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_large_model_keeps_them() -> None:
    with fitting_threads(torch.zeros(1).expand(SMALL)):
        assert torch.get_num_threads() == 2
