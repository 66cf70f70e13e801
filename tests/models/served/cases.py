"""The models and requests that were recorded: rebuilt here, so that what a server said can be computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Qwen2ForCausalLM

from opd_probe.types import Prompt
from tests.tiny import tiny_model

WIDTH = 64
K = 8
EOS = (1, 7)


def teacher() -> Qwen2ForCausalLM:
    """What the recorded server had as ``tiny-teacher``."""
    return tiny_model(WIDTH, hidden=64, seed=2, tied=False)


def student() -> Qwen2ForCausalLM:
    """What the recorded server had as ``tiny-student``."""
    model = tiny_model(WIDTH, hidden=64, seed=1, tied=False, spread=0.3)
    model.generation_config.eos_token_id = list(EOS)
    return model


def rollouts() -> list[dict[str, Any]]:
    """Five responses to three prompts; one has a masked token in its middle, one is empty."""
    generator = np.random.default_rng(7)
    prompts = [generator.integers(3, WIDTH, length).tolist() for length in (4, 7, 5)]
    found: list[dict[str, Any]] = []
    for index, (prompt, length) in enumerate([(0, 6), (0, 9), (1, 5), (2, 0), (2, 7)]):
        response = generator.integers(0, WIDTH, length).tolist()
        row = {"id": f"r{index}", "prompt_id": f"p{prompt}", "prompt_ids": prompts[prompt], "response_ids": response}
        found.append({**row, "score": float(index % 2)})
    found[1]["response_mask"] = [1, 1, 1, 0, 0, 1, 1, 1, 1]
    return found


PROMPTS = [Prompt("a", ids=(5, 9, 40)), Prompt("b", ids=(11, 3, 62, 8, 20))]
SAMPLING: dict[str, Any] = {"num_rollouts": 3, "max_new_tokens": 8, "seed": 5}
BANNED = (2, 60, 61, 62, 63)
"""Ids that the recorded samples were not to hold."""
