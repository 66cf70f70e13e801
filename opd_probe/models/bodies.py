"""Three ways to have from a model what its output layer reads, and what the model keeps of tokens it has read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache

from opd_probe.models.growing import let_grow
from opd_probe.models.placement import input_device
from opd_probe.models.readout import output_module

Kind = Literal["decoder", "before the output layer", "own logits"]
"""The model's decoder alone; the whole model up to where it calls its output layer; the whole model with its logits,
beside which no output layer is needed."""

Maker = Literal["its own", "of its configuration"]
"""Who makes a cache: the model in its own forward, or we, as ``generate`` does it."""


@dataclass(frozen=True)
class Caching:
    """How a model is called behind a cache.

    Attributes:
        maker: who makes the cache.
        stated: whether a mask of ones and the positions are said where nothing is padded, as ``generate`` does it.
    """

    maker: Maker
    stated: bool


CACHINGS = tuple(Caching(maker, stated) for maker in get_args(Maker) for stated in (False, True))
"""The cheapest first."""

_INPUTS = {"input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels", "use_cache"}


class _Reached(Exception):
    """The model came to its output layer."""


class Past:
    """What a model keeps of the tokens it has read: a cache, a recurrent state, under the names that it gives them."""

    def __init__(self, caching: Caching) -> None:
        self.caching = caching
        self.values: dict[str, Any] = {}
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch, or repeat them.

        Args:
            rows: int [B'], on the CPU, which indexes a cache on whatever devices its layers are.
        """
        self.values = {name: _select(value, rows) for name, value in self.values.items()}


def _select(value: Any, rows: Tensor) -> Any:
    if hasattr(value, "reorder_cache"):
        value.reorder_cache(rows)
        return value
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device)) if value.dim() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_select(one, rows) for one in value)
    if value is None or isinstance(value, (int, float)):
        return value
    raise RuntimeError(f"no way to select rows of a {type(value).__name__}")


class Body:
    """A model as a function from token ids to the inputs of its output layer."""

    def __init__(self, model: Any, kind: Kind) -> None:
        self.model, self.kind = model, kind
        self.module = model
        if kind == "decoder":
            self.module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        inner = self.module.get_base_model() if hasattr(self.module, "get_base_model") else self.module
        self._names = frozenset(inspect.signature(inner.forward).parameters)

    def __call__(
        self, input_ids: Tensor, past: Past | None = None, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """[B, T, d] for ids [B, T] behind what ``past`` holds, which grows by T tokens.

        Args:
            mask: [B, past + T], 0 at padding; None: there is none.
            positions: [B, T]; None: they go on counting.
        """
        device = input_device(self.model)
        known: dict[str, Any] = {"input_ids": input_ids.to(device)}
        if "use_cache" in self._names:
            known["use_cache"] = past is not None
        if past is not None:
            past.length += input_ids.shape[1]
            if mask is None and past.caching.stated:
                mask = input_ids.new_ones((len(input_ids), past.length))
                positions = torch.arange(past.length - input_ids.shape[1], past.length).expand(input_ids.shape)
        if mask is not None:
            if "attention_mask" not in self._names:
                raise RuntimeError("takes no attention mask")
            known["attention_mask"] = mask.to(device)
        if positions is not None and "position_ids" in self._names:
            known["position_ids"] = positions.to(device)
        if past is not None:
            known |= self._cache(past)
        if self.kind == "before the output layer":
            return self._before_output_layer(known)
        output = self.module(**known)
        if past is not None:
            self._keep(past, output)
        result: Tensor = output.logits if self.kind == "own logits" else output.last_hidden_state
        return result

    def _cache(self, past: Past) -> dict[str, Any]:
        by_us = past.caching.maker == "of its configuration" or self.kind == "before the output layer"
        if not past.values and by_us:
            name = next((name for name in ("past_key_values", "cache_params") if name in self._names), None)
            if name is None:
                raise RuntimeError("takes no cache")
            past.values = {name: DynamicCache(config=self.model.config.get_text_config(decoder=True))}
        return past.values

    def _keep(self, past: Past, output: Any) -> None:
        names = [name for name, value in output.items() if name in self._names - _INPUTS and value is not None]
        past.values |= {name: output[name] for name in names}
        if not past.values:
            raise RuntimeError("keeps nothing of what it has read")

    def _before_output_layer(self, known: dict[str, Any]) -> Tensor:
        found: list[Tensor] = []

        def reached(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            found.append(args[0] if args else next(iter(kwargs.values())))
            raise _Reached

        handle = output_module(self.model).register_forward_pre_hook(reached, with_kwargs=True)
        try:
            self.module(**known)
        except _Reached:
            return found[0]
        finally:
            handle.remove()
        raise RuntimeError("does not call its output layer")


def last_of_prompts(body: Body, prompts: Tensor, mask: Tensor | None, past: Past) -> Tensor:
    """Outputs at the last tokens, [B, d], of prompts [B, T] that are padded on the left where the mask is 0; without a
    mask the attention is that of the replay."""
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp_min(0)
    return body(prompts, past, mask, positions)[:, -1]


def next_tokens(body: Body, tokens: Tensor, mask: Tensor | None, past: Past) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, d] at one more token [B] of each row, and the mask that counts it."""
    for cache in past.values.values():
        let_grow(cache)
    if mask is None:
        return body(tokens[:, None], past)[:, -1], None
    positions = mask.sum(-1, keepdim=True)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return body(tokens[:, None], past, mask, positions)[:, -1], mask


def own_logits(model: Any, input_ids: Tensor) -> Tensor:
    """What every path is held against: the model's own logits of whole sequences [B, T], [B, T, W].

    Of a wrapper whose forward does not run on text alone (Llama 4 in transformers 5.24) those of the causal language
    model in it.
    """
    try:
        logits: Tensor = Body(model, "own logits")(input_ids)
    except AttributeError:
        inner = getattr(model, "language_model", None)
        if inner is None or inner.get_output_embeddings() is None:
            raise
        logits = Body(inner, "own logits")(input_ids)
    return logits


_ROUNDED_INPUTS = ("act_quant_kwargs", "activation_quantization")
"""What torchao's packed weights say of the rounding of what they are multiplied with; None: there is none."""


def body_type(model: Any) -> torch.dtype:
    """The coarsest floating type among a model's weights, whose rounding its numbers have."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1}
    if multiplies_integers(model):
        types.add(torch.bfloat16)  # whose step is about that of 8 bits
    return max(types, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


def multiplies_integers(model: Any) -> bool:
    """Whether a model rounds the inputs of its layers to 8 bits, as bitsandbytes, torchao and compressed-tensors do it:
    by scales that may depend on what else goes through, so that a sequence says the same thing only alone and whole."""
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    if any(getattr(scheme, "input_activations", None) is not None for scheme in schemes):
        return True
    return any(
        p.dtype == torch.int8 or any(getattr(p, name, None) is not None for name in _ROUNDED_INPUTS)
        for p in model.parameters()
    )


def rounding_of(model: Any) -> float:
    """The relative rounding of a model's products: that of its coarsest weights, or of a GPU that is allowed to take
    products of float32 matrices in TF32."""
    kind = body_type(model)
    fast = input_device(model).type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-10 if fast and kind == torch.float32 else torch.finfo(kind).eps
