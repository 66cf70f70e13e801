"""Activated LoRA: an adapter that is on from its invocation tokens onwards, and off before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opd_probe.errors import InputError
from opd_probe.models.adapters import active_configs


def activated(model: Any, backbone: Any) -> Any:
    """The layers of a model, called as ever; with an activated LoRA in them, called as peft's own forward does.

    Raises:
        InputError: invocation tokens that padding can make up.
    """
    invocations = [config.alora_invocation_tokens for config in active_configs(model) if _is_activated(config)]
    if not invocations:
        return backbone
    if len(invocations) > 1 or not hasattr(model, "get_base_model"):
        raise InputError(
            f"model {type(model).__name__}: an activated LoRA is switched on by peft's own model of it; expected that "
            "PeftModel, with one active adapter, or the adapter's path"
        )
    tokens = [int(token) for token in invocations[0]]
    if tokens[-1] == 0:
        raise InputError(
            f"model {type(model).__name__}: the invocation tokens {tokens} of its activated LoRA end in id 0, with "
            "which batches are padded; expected another last token"
        )
    return _Activated(model.base_model, backbone, tokens)


def _is_activated(config: Any) -> bool:
    return bool(getattr(config, "alora_invocation_tokens", None))


class _Activated:
    """peft looks for the last invocation in the sequence that it is given; what follows in a cache stays activated.

    Which rows of a cache are activated is kept with it, and follows them when they are chosen or repeated.
    """

    def __init__(self, tuner: Any, backbone: Any, invocation: list[int]) -> None:
        self.tuner, self.backbone = tuner, backbone
        self.invocation = torch.tensor(invocation)

    def __call__(self, *, input_ids: Tensor, **given: Any) -> Any:
        cache, length = given.get("past_key_values"), input_ids.shape[1]
        started = self._tokens_since(input_ids, given.get("attention_mask"))
        if cache is not None:
            if (active := getattr(cache, "activated_rows", None)) is None:
                _follow(cache)
                active = torch.zeros(len(input_ids), dtype=torch.bool)
            elif bool((started > 0).any()):
                raise InputError(
                    "activated LoRA: a response, or a prompt behind its first 8192 tokens, holds the adapter's "
                    f"invocation tokens {self.invocation.tolist()} again, which switch it on from there; expected them "
                    "once, in the prompt"
                )
            started = torch.where(active, length, started)
            cache.activated_rows = started > 0
        offsets = [int(count) or None for count in started.tolist()]
        with self.tuner._enable_peft_forward_hooks(alora_offsets=offsets):
            return self.backbone(input_ids=input_ids, **given)

    def _tokens_since(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens from the last invocation to the end of each row [B]; 0 where there is none."""
        ids = input_ids.cpu()
        if mask is not None:  # of what is cached and of these: padding is no token
            ids = ids.masked_fill(mask[:, -ids.shape[1] :].cpu() == 0, -1)
        size, length = len(self.invocation), ids.shape[1]
        if length < size:
            return torch.zeros(len(ids), dtype=torch.int64)
        found = (ids.unfold(1, size, 1) == self.invocation).all(-1)  # [B, T - size + 1]
        return torch.where(found, length - torch.arange(found.shape[1]), length + 1).amin(1).remainder(length + 1)


def _follow(cache: Any) -> None:
    """Let the rows that are activated follow those of their cache."""
    for name, chosen in (
        ("batch_select_indices", lambda rows, indices: rows[indices.cpu()]),
        ("batch_repeat_interleave", lambda rows, repeats: rows.repeat_interleave(repeats)),
    ):
        setattr(cache, name, _after(cache, getattr(cache, name), chosen))


def _after(cache: Any, change: Any, chosen: Any) -> Any:
    def both(argument: Any) -> None:
        change(argument)
        cache.activated_rows = chosen(cache.activated_rows, argument)

    return both
