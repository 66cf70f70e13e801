"""Sampling responses from a model: a lean decoder with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from opd_probe.lab.models import EOS_ID, PAD_ID, LabModel
from opd_probe.lab.task import VOCABULARY

__all__ = ["Decoder", "Sample", "response_text", "sample_responses"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch of sampled responses.

    Attributes:
        prompt_ids: [N, P] token ids.
        response_ids: [N, T] token ids, padded on the right.
        mask: [N, T] booleans, True on response tokens (EOS included, padding not).
    """

    prompt_ids: Tensor
    response_ids: Tensor
    mask: Tensor

    @property
    def input_ids(self) -> Tensor:
        """[N, P + T]: prompt and response, what both models are evaluated on."""
        return torch.cat([self.prompt_ids, self.response_ids], dim=1)

    @property
    def first_state(self) -> int:
        """Index in :attr:`input_ids` of the last prompt token: its logits predict the first response id."""
        return self.prompt_ids.shape[1] - 1

    def texts(self) -> list[str]:
        """The responses in words, without EOS and padding."""
        lengths = self.mask.sum(dim=1).tolist()
        return [response_text(ids[:n]) for ids, n in zip(self.response_ids.tolist(), lengths, strict=True)]


def response_text(ids: Sequence[int]) -> str:
    """Token ids as words, EOS and padding left out."""
    return " ".join(VOCABULARY[token] for token in ids if token not in (EOS_ID, PAD_ID))


class Decoder:
    """The lab's architecture, a few tokens at a time, for a batch of sequences of one length.

    A model this small spends most of a decoding step of transformers between its operations; this does the same
    arithmetic on the same weights in a third of the time.
    """

    def __init__(self, model: LabModel, batch: int, max_length: int) -> None:
        inner: Any = model.model
        self.layers, self.final = list(inner.layers), inner.norm
        self.embedding: Tensor = inner.embed_tokens.weight
        self.output: Tensor = model.lm_head.weight
        config: Any = model.config
        self.heads, self.width = int(config.num_attention_heads), int(config.head_dim)
        shape = (batch, self.heads, max_length, self.width)
        self.cache = [(torch.empty(shape), torch.empty(shape)) for _ in self.layers]
        self.length = 0
        frequencies = inner.rotary_emb.inv_freq.float()
        angles = torch.arange(max_length)[:, None] * torch.cat([frequencies, frequencies])
        self.cos, self.sin = angles.cos(), angles.sin()

    def logits(self, ids: Tensor) -> Tensor:
        """Append ``ids`` [N, T] to every sequence; float32 logits [N, V] after the last of them."""
        n, t = ids.shape
        start, end = self.length, self.length + t
        self.length = end
        cos, sin = self.cos[start:end], self.sin[start:end]

        def turned(x: Tensor) -> Tensor:
            low, high = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-high, low], dim=-1) * sin

        x = self.embedding[ids]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            a = layer.self_attn
            h = _normed(layer.input_layernorm, x)
            q, k, v = (
                linear(h, p.weight, p.bias).view(n, t, self.heads, self.width).transpose(1, 2)
                for p in (a.q_proj, a.k_proj, a.v_proj)
            )
            keys[:, :, start:end], values[:, :, start:end] = turned(k), v
            mixed = scaled_dot_product_attention(turned(q), keys[:, :, :end], values[:, :, :end], is_causal=t > 1)
            x = x + linear(mixed.transpose(1, 2).reshape(n, t, -1), a.o_proj.weight)
            h, m = _normed(layer.post_attention_layernorm, x), layer.mlp
            x = x + linear(silu(linear(h, m.gate_proj.weight)) * linear(h, m.up_proj.weight), m.down_proj.weight)
        return linear(_normed(self.final, x[:, -1]), self.output).float()


def _normed(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


@torch.no_grad()
def sample_responses(
    model: LabModel,
    prompt_ids: Tensor,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Sample:
    """Sample one response to each prompt, ŷ_t ~ softmax(logits / temperature), until EOS or ``max_new_tokens``.

    Args:
        prompt_ids: [N, P] token ids; equal lengths, so that no padding and no attention mask is needed. A prompt may
            end in the beginning of a response, which is then continued.
        generator: decides the draws; the same state gives the same responses.
    """
    decoder = Decoder(model, len(prompt_ids), prompt_ids.shape[1] + max_new_tokens)
    active = torch.ones(len(prompt_ids), dtype=torch.bool)
    tokens, masks = [], []
    inputs = prompt_ids
    for _ in range(max_new_tokens):
        probabilities = torch.softmax(decoder.logits(inputs) / temperature, dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        drawn = torch.where(active, drawn, PAD_ID)
        tokens.append(drawn)
        masks.append(active)
        active = active & (drawn != EOS_ID)
        if not bool(active.any()):
            break
        inputs = drawn.unsqueeze(1)
    return Sample(prompt_ids, torch.stack(tokens, dim=1), torch.stack(masks, dim=1))
