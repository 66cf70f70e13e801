"""Replay against the hand-written script on rollouts of real lengths: log-normal, four to a prompt, in one process.

    python -m benchmarks.lengths

The script pads batches of 8 rollouts in the order of the file and keeps the full float32 logits of both models. Those
of a large vocabulary would not fit into memory at these lengths, so the vocabulary here is 8,192.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from opd_probe.engine.replay import Replay, ReplaySettings
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.types import Rollout

WIDTH = 8_192
PROMPT = 120
MEDIAN, SPREAD, LONGEST = 300, 0.95, 4_096


def build(seed: int, hidden: int, layers: int) -> LoadedModel:
    """A Qwen2-shaped model with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=WIDTH,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=32_768,
    )
    return load_model(Qwen2ForCausalLM(config))


def sample(count: int) -> list[Rollout]:
    """Rollouts of log-normal length, median 300, the longest 4,096."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(MEDIAN), SPREAD, count).astype(int), 8, LONGEST)
    lengths[generator.integers(count)] = LONGEST
    rollouts = []
    for index, length in enumerate(lengths):
        if index % 4 == 0:
            prompt = tuple(generator.integers(0, WIDTH, PROMPT).tolist())
        rollouts.append(Rollout(str(index), prompt, tuple(generator.integers(0, WIDTH, length).tolist())))
    return rollouts


def ours(student: LoadedModel, teacher: LoadedModel, rollouts: list[Rollout], k: int) -> float:
    """The replay engine."""
    engine = Replay(student, teacher, rollouts, np.arange(WIDTH), ReplaySettings(k))
    return float(sum(values["reverse_kl"].sum() for _, values in engine.states()))


@torch.inference_mode()
def by_hand(student: LoadedModel, teacher: LoadedModel, rollouts: list[Rollout], k: int) -> float:
    """Padded batches of 8, full logits, softmax, topk."""
    total = 0.0
    for start in range(0, len(rollouts), 8):
        batch = [[*r.prompt_ids, *r.response_ids] for r in rollouts[start : start + 8]]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        s = torch.log_softmax(student.model(ids, attention_mask=mask).logits.float(), -1)
        t = torch.log_softmax(teacher.model(ids, attention_mask=mask).logits.float(), -1)
        p, q = s.exp(), t.exp()
        reverse, forward = (p * (s - t)).sum(-1), (q * (t - s)).sum(-1)
        entropy = -(p * s).sum(-1) - (q * t).sum(-1)
        top = s.topk(k, -1), t.topk(k, -1)
        crossed = t.gather(-1, top[0].indices).sum(-1) + s.gather(-1, top[1].indices).sum(-1)
        total += float((reverse * mask).sum()) + 0.0 * float(forward.sum() + entropy.sum() + crossed.sum())
    return total


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--k", type=int, default=16)
    arguments = parser.parse_args()
    models = [build(seed, arguments.hidden, arguments.layers) for seed in (0, 1)]
    rollouts = sample(arguments.rollouts)
    states = sum(len(r.response_ids) for r in rollouts)
    seconds = {}
    for name, path in (("opd-probe", ours), ("by hand", by_hand)):
        path(models[0], models[1], rollouts[:8], arguments.k)
        started = time.perf_counter()
        path(models[0], models[1], rollouts, arguments.k)
        seconds[name] = time.perf_counter() - started
        print(f"{name:<12}{seconds[name]:>9.1f} s{states / seconds[name]:>10.0f} states/s")
    print(f"{'by hand / opd-probe':<20}{seconds['by hand'] / seconds['opd-probe']:.2f}")


if __name__ == "__main__":
    main()
