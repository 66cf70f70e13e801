"""Sampling responses from a model: a lean loop on a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from opd_probe.lab.models import EOS_ID, PAD_ID
from opd_probe.lab.task import VOCABULARY

__all__ = ["Sample", "response_text", "sample_responses"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch of sampled responses.

    Attributes:
        prompt_ids: [N, P] token ids.
        response_ids: [N, T] token ids, padded on the right.
        mask: [N, T] booleans, True on response tokens (EOS included, padding not).
    """

    prompt_ids: torch.Tensor
    response_ids: torch.Tensor
    mask: torch.Tensor

    @property
    def input_ids(self) -> torch.Tensor:
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


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Sample:
    """Sample one response to each prompt, ŷ_t ~ softmax(logits / temperature), until EOS or
    ``max_new_tokens``.

    Args:
        prompt_ids: [N, P] token ids; equal lengths, so that no padding and no attention mask is needed.
        generator: decides the draws; the same state gives the same responses.
    """
    cache = DynamicCache(config=model.config)
    active = torch.ones(len(prompt_ids), dtype=torch.bool)
    tokens, masks = [], []
    inputs = prompt_ids
    for _ in range(max_new_tokens):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        probabilities = torch.softmax(output.logits[:, -1].float() / temperature, dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        drawn = torch.where(active, drawn, PAD_ID)
        tokens.append(drawn)
        masks.append(active)
        active = active & (drawn != EOS_ID)
        if not bool(active.any()):
            break
        inputs = drawn.unsqueeze(1)
    return Sample(prompt_ids, torch.stack(tokens, dim=1), torch.stack(masks, dim=1))
