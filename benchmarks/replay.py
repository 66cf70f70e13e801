"""Replay against the floor, the naive way and the trainers' sequences of operations, at a vocabulary of 152,000.

    python -m benchmarks replay-float32        # 494M and 630M parameters: minutes
    python -m benchmarks replay-bfloat16

The models are Qwen2-shaped with random weights; random weights make every token about equally hard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.measuring import Row, paired
from benchmarks.paths import Workload, engine, first_call, floor, naive, ours, thunlp, verl
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.types import Rollout

PATHS: dict[str, Callable[[Workload], float]] = {
    "floor": floor,
    "opd-probe, first call": first_call,
    "opd-probe": ours,
    "its engine alone": engine,
    "opd-probe, compiled": lambda work: ours(work, compiled=True),
    "opd-probe with JSD": lambda work: ours(work, jsd=True),
    "naive": naive,
    "thunlp/OPD's operations": thunlp,
    "verl's operations": verl,
}
RELATIVE_TO = {
    "floor": "floor",
    "naive": "naive",
    "thunlp": "thunlp/OPD's operations",
    "verl": "verl's operations",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, after Qwen2.5."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    width: int = 151_936
    tied: bool = True


SMALL = Shape(64, 128, 2, 2, 2, 2_000)
HALF_BILLION = Shape(896, 4_864, 24, 14, 2)


def build(shape: Shape, dtype: torch.dtype, seed: int, device: str = "cpu") -> LoadedModel:
    """A model of that shape with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.width,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=65_536,
        dtype=dtype,
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(dtype)
    return load_model(model)


def workload(dtype: torch.dtype, small: bool, k: int) -> Workload:
    """Four responses of 160 tokens to prompts of 64, or small ones."""
    shape = SMALL if small else HALF_BILLION
    prompt, response = (8, 24) if small else (64, 160)
    models = build(shape, dtype, 0), build(replace(shape, width=shape.width + 128, tied=False), dtype, 1)
    return Workload(*models, random_rollouts(4, prompt, response, shape.width), k)


def random_rollouts(count: int, prompt: int, response: int, width: int) -> list[Rollout]:
    """Rollouts of random tokens, each with a prompt of its own."""
    generator = np.random.default_rng(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, width, length).tolist())

    return [Rollout(str(index), tokens(prompt), tokens(response)) for index in range(count)]


def measure(dtype: str, k: int, repeats: int = 3, small: bool = False) -> list[Row]:
    """One row per path."""
    work = workload(getattr(torch, dtype), small, k)
    paths = {name: lambda path=path: path(work) for name, path in PATHS.items()}
    return paired(f"{dtype} weights, K = {k}", paths, repeats, work.n_states, RELATIVE_TO)
