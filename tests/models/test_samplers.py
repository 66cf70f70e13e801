"""What is known of samplers without running vLLM; what a real one does: tests/contract."""

from __future__ import annotations

import hashlib
import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import transformers

from opd_probe.errors import InputError
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import load_model
from opd_probe.models.samplers import check_vllm, sampler_version
from opd_probe.models.vllm_sampling import LONGEST_LIST, restriction, rollout_seed
from opd_probe.types import Checkpoint, Prompt
from tests.tiny import tiny_model

without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")


def test_a_rollout_names_its_sampler() -> None:
    (rollout,) = sample_rollouts(load_model(tiny_model()), [Prompt("p", ids=(3,))], num_rollouts=1, max_new_tokens=2)
    assert rollout.sampler == sampler_version("transformers") == f"transformers {transformers.__version__}"


@without_vllm
def test_vllm_is_not_installed() -> None:
    with pytest.raises(InputError, match=r"^sampler vllm: vllm is not installed; pip install vllm, or leave out"):
        check_vllm(Checkpoint("x"), dtype=None, temperature=1.0)


@pytest.mark.parametrize(
    ("source", "more", "part"),
    [
        (Checkpoint("x", format="peft", base="y"), {}, "x is an adapter; merge it"),
        (tiny_model(), {}, "Qwen2ForCausalLM in memory"),
        (Checkpoint("x"), {"dtype": "float64"}, "float64"),
        (Checkpoint("x"), {"temperature": 0.005}, "sample temperature = 0.005; expected at least 0.01"),
    ],
)
def test_what_vllm_cannot_do_is_refused_in_one_line(source: Any, more: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=r"^sampler vllm: ") as caught:
        check_vllm(source, **{"dtype": None, "temperature": 1.0, **more})
    assert part in str(caught.value)
    assert "--sampler transformers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_rollout_has_a_seed_of_its_own_from_what_its_stream_derives_from() -> None:
    seeds = {rollout_seed(s, p, n) for s in (0, 1) for p in ("a", "b") for n in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    digest = hashlib.sha256(b"7\x00p1\x003").digest()
    assert rollout_seed(7, "p1", 3) == int.from_bytes(digest[:8], "little") // 2


def test_ids_are_left_out_by_the_shorter_list() -> None:
    assert restriction(None, 64) == restriction(np.arange(64), 64) == {}
    assert restriction(np.array([1, 5]), 64) == {"allowed_token_ids": [1, 5]}
    few = np.setdiff1d(np.arange(151_936), [7, 151_935])
    assert restriction(few, 151_936) == {"logit_bias": {7: -math.inf, 151_935: -math.inf}}
    with pytest.raises(InputError, match=r"1025 of the student's 3000 ids .* leave out 1024 at most"):
        restriction(np.arange(LONGEST_LIST + 1, 3000), 3000)
