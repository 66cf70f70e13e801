"""Sampling against transformers' own batched generation: same model, prompts, number of tokens.

python -m benchmarks sampling filling

The second has responses of log-normal length, as distillation has them: ours fills the place of each that ends, and is
held against itself in batches that wait for their last, with room kept for the longest, and against ``generate``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList

from benchmarks.lengths import SHAPE
from benchmarks.measuring import Row, paired
from benchmarks.replay import Shape, build
from opd_probe.models import generation
from opd_probe.models.filling import Filling
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


BATCH = 2_048
"""The default bound on the tokens of a batch, for responses an eighth as long."""

MEDIAN, SPREAD, LONGEST, END = 40, 0.95, 512, 0
"""Lengths as in real runs, an eighth as long. The end of a response is an id of its own."""


def ending_lengths(count: int, longest: int) -> list[int]:
    """Log-normal, the longest among them."""
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.lognormal(np.log(MEDIAN), SPREAD, count).astype(int), 4, longest)
    lengths[generator.integers(count)] = longest
    return [int(length) for length in lengths]


def planned_lengths(prompts: list[Prompt], samples: int, longest: int) -> dict[tuple[str, int], int]:
    """The length of each response, by prompt and sample."""
    names = [(prompt.id, number) for prompt in prompts for number in range(samples)]
    return dict(zip(names, ending_lengths(len(names), longest), strict=True))


@contextmanager
def ending_at(lengths: dict[tuple[str, int], int]) -> Iterator[None]:
    """While the block runs, the end, which is the first id of all, is drawn where it is planned and nowhere else."""
    plain = generation._uniforms

    def uniforms(seed: int, prompt: str, sample: int, size: int) -> NDArray[np.float64]:
        found = np.maximum(plain(seed, prompt, sample, size), 0.01)
        found[lengths[prompt, sample] - 1] = 0.0
        return found

    generation._uniforms = uniforms
    try:
        yield
    finally:
        generation._uniforms = plain


class Waiting(Filling[Any]):
    """Batches that wait for their last response, with room for the longest in each row."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.joins = False

    def _fitting(self) -> tuple[list[Any], list[Any]]:
        count = max(1, self.bound // (len(self._tokens(self.waiting[0])) + self.max_new_tokens))
        return [], [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]


@contextmanager
def room_for_the_longest() -> Iterator[None]:
    """While the block runs, sampling goes in such batches."""
    vars(generation)["Filling"] = Waiting
    try:
        yield
    finally:
        vars(generation)["Filling"] = Filling


def measure_filling(
    count: int = 32, samples: int = 4, width: int = 32, repeats: int = 1, longest: int = LONGEST
) -> list[Row]:
    """Three rows, the last of them what the others are timed against."""
    model = build(SHAPE, torch.float32, 0)
    model.model.generation_config.eos_token_id = END
    model = replace(model, eos_ids=(END,))
    prompts = prompts_of(count, SHAPE.width)
    lengths = planned_lengths(prompts, samples, longest)

    def drawn(bound: int) -> int:
        with ending_at(lengths):
            found = sample_rollouts(model, prompts, num_rollouts=samples, max_new_tokens=longest, batch_tokens=bound)
        assert [len(one.response_ids) for one in found] == list(lengths.values())
        return len(found)

    def waiting() -> int:
        with room_for_the_longest():
            return drawn(BATCH)

    paths = {
        "opd-probe": lambda: drawn(width * (longest + 96)),
        "in batches with room for the longest": waiting,
        "transformers' generate": lambda: generate_lengths(model, prompts, lengths, width),
    }
    model.cache_for("joined")
    workload = f"sampling {count} × {samples} responses of log-normal length, {width} at a time"
    tokens = sum(lengths.values())
    return paired(workload, paths, repeats, tokens, {"naive": "transformers' generate"}, warm=False)


def generate_lengths(model: LoadedModel, prompts: list[Prompt], lengths: dict[tuple[str, int], int], width: int) -> int:
    """``generate`` in batches of that many rows, each response ended at its length."""
    rows = [
        (prompt, lengths[prompt.id, sample]) for prompt in prompts for sample in range(len(lengths) // len(prompts))
    ]
    for start in range(0, len(rows), width):
        part = rows[start : start + width]
        longest = max(len(prompt.ids or ()) for prompt, _ in part)
        ids = torch.zeros((len(part), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(part):
            given = torch.tensor(prompt.ids)
            ids[row, longest - len(given) :], mask[row, longest - len(given) :] = given, 1
        ends = torch.tensor([longest + length - 1 for _, length in part])

        def end(input_ids: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor = ends) -> torch.Tensor:
            over = (input_ids.shape[1] == ends)[:, None]
            scores = scores.masked_fill(over, -torch.inf)
            scores[:, END] = torch.where(over[:, 0], 0.0, -torch.inf)
            return scores

        model.model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max(lengths.values()), pad_token_id=END,
            logits_processor=LogitsProcessorList([end]),
        )  # fmt: skip
    return len(rows)
