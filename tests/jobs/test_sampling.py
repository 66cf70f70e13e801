"""When stored samples are used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_probe.errors import OpdProbeWarning
from opd_probe.jobs.sampling import sampling_key, store_samples, stored_samples
from opd_probe.options.settings import Settings
from opd_probe.types import Checkpoint, Prompt, Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

ROLLOUTS = [Rollout("p/0", (3, 4), (5, 1), logprobs=(-1.0, -2.0), finish_reason="stop", sampler="transformers 5.23.0")]


@pytest.fixture
def key(tmp_path: Path) -> dict[str, Any]:
    path = save_checkpoint(tmp_path / "student", tiny_model(), tiny_tokenizer())
    return sampling_key(Checkpoint(str(path)), [], [Prompt("p", text="0 1")], Settings(), None)


def test_under_the_same_key(tmp_path: Path, key: dict[str, Any]) -> None:
    store_samples(tmp_path / "s.parquet", ROLLOUTS, key)
    assert stored_samples(tmp_path / "s.parquet", key) == ROLLOUTS
    assert stored_samples(tmp_path / "s.parquet", {**key, "seed": 1}) is None


def test_another_sampler_s_are_not_used_and_that_is_said(tmp_path: Path, key: dict[str, Any]) -> None:
    assert key["sampler"] == "transformers"
    store_samples(tmp_path / "s.parquet", ROLLOUTS, {**key, "sampler": "vllm 0.31.0"})
    for asked in ("transformers", "vllm 0.32.0"):
        with pytest.warns(OpdProbeWarning, match=rf"made by vllm 0\.31\.0, asked for is {asked}; sampled anew"):
            assert stored_samples(tmp_path / "s.parquet", {**key, "sampler": asked}) is None
