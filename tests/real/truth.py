"""What is right, in float64: the model's forward pass by its definition, and every metric from its logits.

The metrics are those of :mod:`tests.reference` for many states of a real vocabulary at once; a test holds the two
against each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from opd_probe.types import Rollout
from tests import reference

Floats = NDArray[np.float64]
Values = dict[str, Floats]
ROWS = 32
"""States whose logits are held at a time."""


class Llama:
    """A Llama in float64 throughout, written from its definition; transformers takes norms and angles in float32.

    Args:
        weights: the type that the weights are rounded to first.
    """

    def __init__(self, place: Path, weights: torch.dtype = torch.float32) -> None:
        self.config = json.loads((place / "config.json").read_text())
        stored = load_file(place / "model.safetensors")
        self.weights = {name: value.to(weights).double() for name, value in stored.items()}

    @property
    def output(self) -> Tensor:
        """The output layer, [V, d]: the embedding."""
        return self.weights["model.embed_tokens.weight"]

    @torch.inference_mode()
    def hidden(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Inputs of the output layer at the states of rollouts without a mask, [N, d], each rollout by itself."""
        parts = []
        for rollout in rollouts:
            ids = torch.tensor([*rollout.prompt_ids, *rollout.response_ids][:-1])
            parts.append(self.forward(ids)[len(rollout.prompt_ids) - 1 :])
        return torch.cat(parts)

    def forward(self, ids: Tensor) -> Tensor:
        """[T] -> [T, d]"""
        x = self.output[ids]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
            h = self._norm(x, f"{at}.post_attention_layernorm")
            gate = torch.nn.functional.silu(self._times(h, f"{at}.mlp.gate_proj"))
            x = x + self._times(gate * self._times(h, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
        return self._norm(x, "model.norm")

    def _times(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].t()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        size = x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]
        return self.weights[f"{name}.weight"] * x / size.sqrt()

    def _attention(self, x: Tensor, name: str) -> Tensor:
        heads, kept = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (self._times(x, f"{name}.{which}_proj") for which in "qkv")
        q, k, v = (part.unflatten(-1, (-1, self.config["head_dim"])).transpose(0, 1) for part in (q, k, v))
        q, k = self._rotated(q), self._rotated(k)
        k, v = (part.repeat_interleave(heads // kept, dim=0) for part in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(self.config["head_dim"])
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self._times(mixed.transpose(0, 1).flatten(1), f"{name}.o_proj")

    def _rotated(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        speed = self.config["rope_parameters"]["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speed
        left, right = x[..., :half], x[..., half:]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)


def logits_of(hidden: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """hidden · weightᵀ in float64, :data:`ROWS` states at a time."""
    wide = weight.double().t()
    for rows in hidden.split(ROWS):
        yield rows.double() @ wide


def metrics(student: Tensor, teacher: Tensor, tokens: Tensor, correct: Floats, k: int, depth: int) -> Values:
    """Every metric of n states from float64 logits [n, V], [n] values each, and what columns of a trace they rest on.

    Args:
        tokens: int64 [n]. correct: [n], 1 or 0 by the rollout's verdict, NaN without one.
        depth: beyond it the k that a mass needs is unknown.
    """
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    at = tokens[:, None]
    columns = {
        "student_entropy": -(p * log_p).sum(-1),
        "teacher_entropy": -(q * log_q).sum(-1),
        "reverse_kl": (p * (log_p - log_q)).sum(-1),
        "forward_kl": (q * (log_q - log_p)).sum(-1),
        "jsd": (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2,
        "student_logprob": log_p.gather(-1, at)[:, 0],
        "teacher_logprob": log_q.gather(-1, at)[:, 0],
        "student_rest": 1 - p.amax(-1),
    }
    found = {name: value.numpy() for name, value in columns.items()}
    rows = [
        _on_top_sets(log_p[row].numpy(), log_q[row].numpy(), ranks(student[row], depth), ranks(teacher[row], depth), k)
        for row in range(len(tokens))
    ]
    found |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found["entropy_gap"] = np.abs(found["teacher_entropy"] - found["student_entropy"])
    reward = found["sampled_reward"] = found["teacher_logprob"] - found["student_logprob"]
    found["absolute_reward"] = np.abs(reward)
    found["negative_reward_share"] = (reward < 0).astype(float)
    found["near_zero_reward_share"] = (np.abs(reward) < 1e-4).astype(float)
    found["reward_tail_share"] = (reward < -2).astype(float)
    found["sign_noise"] = np.where(np.isnan(correct), np.nan, np.where(correct == 1, reward < 0, reward > 0))
    found["student_token_probability"] = np.exp(found["student_logprob"])
    found["teacher_token_probability"] = np.exp(found["teacher_logprob"])
    found["teacher_nll"] = -found["teacher_logprob"]
    for side in ("student", "teacher"):
        found[f"{side}_high_entropy_share"] = (found[f"{side}_entropy"] > 0.8).astype(float)
    uncertain = found["student_entropy"] / math.log(student.shape[1])
    apart = -np.expm1(-found["reverse_kl"])
    found["soft_or_score"] = uncertain + apart - uncertain * apart
    found["teachability"] = found["reverse_kl"] * found["teacher_mass_on_student"]
    return found


def ranks(logits: Tensor, depth: int) -> list[int]:
    """The ``depth`` ids of the largest logits [V] in rank order; among equal logits the lower id comes first."""
    bound = logits.topk(depth).values[-1]
    candidates = torch.nonzero(logits >= bound)[:, 0].tolist()
    return sorted(candidates, key=lambda token: (-float(logits[token]), token))[:depth]


def _on_top_sets(log_p: Floats, log_q: Floats, ranked_p: list[int], ranked_q: list[int], k: int) -> dict[str, float]:
    """What one state has on top sets, by the functions of the slow reference."""
    top_p, top_q = ranked_p[:k], ranked_q[:k]
    overlap = sorted(set(top_p) & set(top_q))
    supports = {
        "student": top_p,
        "teacher": top_q,
        "overlap": overlap,
        "non_overlap": sorted(set(top_p) ^ set(top_q)),
        "union": sorted(set(top_p) | set(top_q)),
    }
    row = {
        f"topk_reverse_kl_{name}": reference.renormalised_kl(log_p, log_q, support)
        for name, support in supports.items()
    }
    row |= {
        "overlap_ratio": len(overlap) / k,
        "student_overlap_mass": _mass(log_p, overlap),
        "teacher_overlap_mass": _mass(log_q, overlap),
        "student_topk_mass": _mass(log_p, top_p),
        "teacher_topk_mass": _mass(log_q, top_q),
        "teacher_mass_on_student": _mass(log_q, top_p),
        "overlap_advantage": math.nan,
        "overlap_advantage_beyond_one": math.nan,
        "extreme_advantage_gap": math.nan,
        "overlap_size": float(len(overlap)),
        "student_set": number_of(top_p),
        "teacher_set": number_of(top_q),
    }
    if overlap:
        log_pn, log_qn = reference.renormalise(log_p, overlap), reference.renormalise(log_q, overlap)
        advantage = np.exp(log_pn) * (log_qn - log_pn)
        extreme = overlap[int(np.argmax(np.abs(advantage)))]
        row["overlap_advantage"] = math.fsum(advantage) / len(overlap)
        row["overlap_advantage_beyond_one"] = row["overlap_advantage"] if len(overlap) > 1 else math.nan
        row["extreme_advantage_gap"] = float(np.exp(log_p[extreme]) - np.exp(log_q[extreme]))
    for side, logs, ranked in (("student", log_p, ranked_p), ("teacher", log_q, ranked_q)):
        for mass in (0.97, 0.99):
            reached = np.flatnonzero(np.cumsum(np.exp(logs[ranked])) >= mass)
            row[f"{side}_k_for_{mass}"] = float(reached[0] + 1) if len(reached) else math.nan
    return row


def _mass(logs: Floats, ids: list[int]) -> float:
    return math.fsum(np.exp(logs[ids]))


def number_of(ids: Iterable[int]) -> float:
    """A number that stands for a set of ids, so that those of two computations can be compared."""
    return float(hash(frozenset(ids)) % 2**50)


def measure(
    student: Iterator[Tensor], teacher: Iterator[Tensor], tokens: NDArray[np.int64], correct: Floats, k: int, depth: int
) -> Values:
    """:func:`metrics` of all states, from their logits in pieces of :data:`ROWS`."""
    parts, start = [], 0
    for s, t in zip(student, teacher, strict=True):
        rows = slice(start, start + len(s))
        at = torch.from_numpy(tokens[rows])
        parts.append(metrics(s.double(), t.double(), at, correct[rows], k, depth))
        start += len(s)
    assert start == len(tokens)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
