"""Sampling against transformers' own batched generation: same model, prompts, number of tokens.

python -m benchmarks sampling
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.lengths import SHAPE
from benchmarks.measuring import Row, paired
from benchmarks.replay import Shape, build
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel
from opd_probe.types import Prompt


def prompts_of(count: int, width: int) -> list[Prompt]:
    """Random prompts of 32 to 96 tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(32, 97, count)
    return [
        Prompt(str(i), ids=tuple(generator.integers(0, width, length).tolist())) for i, length in enumerate(lengths)
    ]


def ours(model: LoadedModel, prompts: list[Prompt], new_tokens: int) -> int:
    """The toolkit's sampling, log-probabilities of the sampled tokens included."""
    return len(sample_rollouts(model, prompts, num_rollouts=1, max_new_tokens=new_tokens))


@torch.inference_mode()
def generate(model: LoadedModel, prompts: list[Prompt], new_tokens: int) -> int:
    """transformers' ``generate`` on one left-padded batch, which gives the sampled ids alone."""
    longest = max(len(prompt.ids or ()) for prompt in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        given = torch.tensor(prompt.ids)
        ids[row, longest - len(given) :], mask[row, longest - len(given) :] = given, 1
    drawn = model.model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return len(drawn)


def measure(count: int = 32, new_tokens: int = 256, repeats: int = 3, shape: Shape = SHAPE) -> list[Row]:
    """Two rows: the toolkit's sampling, and ``generate`` relative to which it is timed."""
    model = build(shape, torch.float32, 0)
    model.model.generation_config.eos_token_id = None
    prompts = prompts_of(count, shape.width)
    paths = {
        "opd-probe": lambda: ours(model, prompts, new_tokens),
        "transformers' generate": lambda: generate(model, prompts, new_tokens),
    }
    workload = f"sampling {count} × {new_tokens:,} tokens"
    return paired(workload, paths, repeats, count * new_tokens, {"naive": "transformers' generate"})
