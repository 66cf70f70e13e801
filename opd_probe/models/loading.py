"""Loading models: tensors only, no foreign code, one line when it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from opd_probe.errors import InputError, OutOfMemoryError
from opd_probe.models.checkpoints import format_of, headers_of, resolve_checkpoint
from opd_probe.models.formats.headers import stored_dtype
from opd_probe.models.guards import brief
from opd_probe.models.hub import home_of, localized
from opd_probe.models.placement import DeviceMap, check_device_map, input_device, weights_at_hand
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.models.weights import read_model
from opd_probe.types import Checkpoint

DTYPES = ("float32", "bfloat16", "float16", "float64")
_CHECK_IDS = 8


PREFILL_TOKENS = 8192
"""Tokens of one sequence that go through the layers at once."""

MASK_VALUES = 2**25
"""Pairs of new and known tokens that attention may look at at once, in a sequence that goes through piece by piece."""


@dataclass
class OutputLayer:
    """logits = softcap · tanh((scale · hidden · weightᵀ + bias) / softcap), without the last step when it is None.

    ``weight`` is [W, d], ``bias`` [W] or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """The obvious float32 product, for checks: [..., d] -> [..., W]."""
        logits = hidden.float() @ self.weight.float().t() * self.scale
        if self.bias is not None:
            logits = logits + self.bias.float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass
class LoadedModel:
    """A model ready to be replayed.

    Attributes:
        model: in evaluation mode.
        name: for messages and labels.
        tokenizer: None for a model in memory that came without one.
        identity: JSON values that say what was loaded, for provenance.
        output_layer: what turns hidden states into logits.
        checkpoint: where it came from; None for a model in memory.
        eos_ids: end-of-sequence ids of generation_config and tokenizer together.
    """

    model: PreTrainedModel
    name: str
    tokenizer: PreTrainedTokenizerBase | None
    identity: dict[str, Any]
    output_layer: OutputLayer
    checkpoint: Checkpoint | None = None
    eos_ids: tuple[int, ...] = ()
    _backbone: Any = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """The width W of the output layer."""
        return int(self.output_layer.weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """How many positions the model was built for, when it says."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(value) if isinstance(value, int) else None

    @property
    def device(self) -> torch.device:
        """Where its inputs go; its hidden states come out where the output layer is."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.output_layer.weight.dtype

    def hidden(self, input_ids: Tensor, shared: int = 0) -> Tensor:
        """Inputs of the output layer, [B, T - shared, d], where that layer is, for ids [B, T] padded on the right.

        Without an attention mask: a causal model at a real token never sees what is right of it. Sequences longer than
        :data:`PREFILL_TOKENS` go through a key-value cache in pieces of that many tokens, or of fewer where
        :data:`MASK_VALUES` asks for it, which bounds what the layers hold at a time.

        Args:
            shared: tokens at the start that are the same in every row: they go through the layers once, and their
                hidden states are not returned.
        """
        # What a recurrent model keeps of the past is not a cache of keys and values.
        apart = shared > 0 and not getattr(self.model, "_is_stateful", False)
        if not apart and input_ids.shape[1] <= PREFILL_TOKENS:
            output = self._backbone(input_ids=input_ids, use_cache=False)
            hidden: Tensor = output.last_hidden_state[:, shared:]
            return hidden.to(self.output_layer.weight.device)
        cache = DynamicCache()
        size = max(1, min(PREFILL_TOKENS, MASK_VALUES // input_ids.shape[1]))
        if apart:
            for piece in input_ids[:1, :shared].split(size, dim=1):
                self.advance(piece, cache)
            cache.batch_repeat_interleave(len(input_ids))
        start = shared if apart else 0
        pieces = input_ids[:, start:].split(size, dim=1)
        return torch.cat([self.advance(piece, cache) for piece in pieces], dim=1)[:, shared - start :]

    def advance(
        self, input_ids: Tensor, cache: Any, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, T, d] of new tokens [B, T] behind what ``cache`` holds; the cache grows by T.

        Args:
            mask: [B, cached + T], 0 at padding; None: there is none.
            positions: [B, T] of the new tokens; None: they go on counting from the cache.
        """
        known = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
        given = {name: value.to(self.device) for name, value in known.items() if value is not None}
        output = self._backbone(past_key_values=cache, use_cache=True, **given)
        hidden: Tensor = output.last_hidden_state
        return hidden.to(self.output_layer.weight.device)


def load_model(
    source: Any,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    base: str | None = None,
) -> LoadedModel:
    """Load a causal language model for replay.

    Args:
        source: a directory, a hub id, a :class:`Checkpoint`, a transformers model, or a :class:`LoadedModel`
            (returned as it is).
        dtype: one of ``float32``, ``bfloat16``, ``float16``, ``float64``; None: as stored.
        device: None: a GPU when there is one, else the CPU. A model in memory stays where it is.
        device_map: in place of ``device``, for a model that outgrows one: how it is spread, as transformers names it
            (``auto``, ``balanced``, ``balanced_low_0``, ``sequential``, or a device by module name).
        tokenizer: a path, a hub id or a tokenizer, in place of the one beside the weights.
        trust_remote_code: let the directory run its own code.
        base: for an adapter, the base model in place of the one that it names.

    Raises:
        MissingError: nothing at that path, or a base model or hub id that cannot be had.
        InputError: files that cannot be used, or a model whose logits this toolkit does not reproduce.
    """
    if isinstance(source, LoadedModel):
        return source
    _check_dtype(dtype)
    if isinstance(source, (str, Path)):
        source = resolve_checkpoint(source, base=base)
    if isinstance(source, Checkpoint):
        if base is not None:
            source = dataclasses.replace(source, base=base)
        check_device_map(device_map, device)
        place = device_map if device_map is not None else _device(device)
        local = localized(source, code=trust_remote_code)
        model = read_model(
            local, None if dtype is None else getattr(torch, dtype), place, trust_remote_code=trust_remote_code
        )
        loaded = _wrap(model, source, tokenizer_for(local, tokenizer, trust_remote_code=trust_remote_code))
        loaded.identity["stored_dtype"] = stored_dtype(headers_of(local))
        return loaded
    if not hasattr(source, "get_output_embeddings"):
        raise InputError(f"model of type {type(source).__name__}: expected a path, a hub id or a transformers model")
    return _wrap(source, None, load_tokenizer(tokenizer, required=True) if tokenizer is not None else None)


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")


def _device(device: str | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r}: not available here ({brief(error)}); try --device cpu") from None
    return chosen


def tokenizer_for(
    checkpoint: Checkpoint, given: Any = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a local checkpoint is loaded with: the one that is given, else the one beside its weights.

    Raises:
        MissingError, InputError: see :func:`load_tokenizer`.
    """
    place = given if given is not None else _tokenizer_place(checkpoint)
    return load_tokenizer(place, required=given is not None, trust_remote_code=trust_remote_code)


def _tokenizer_place(checkpoint: Checkpoint) -> str:
    """Beside the weights; for an adapter without one of its own, beside those of its base."""
    place = home_of(checkpoint)
    adapter = format_of(checkpoint).adapter(Path(checkpoint.path))
    if adapter and checkpoint.base and not (place / "tokenizer_config.json").is_file():
        return _tokenizer_place(localized(resolve_checkpoint(checkpoint.base)))
    return str(place)


def _wrap(
    model: PreTrainedModel, checkpoint: Checkpoint | None, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedModel:
    model.eval()
    name = checkpoint.path if checkpoint is not None else type(model).__name__
    layer = _output_layer(model, name)
    loaded = LoadedModel(
        model,
        name,
        tokenizer,
        _identity(model, checkpoint, layer),
        layer,
        checkpoint,
        eos_ids_of(getattr(model, "generation_config", None), tokenizer),
        _backbone=model.get_decoder() if hasattr(model, "get_decoder") else model.base_model,
    )
    _self_check(loaded)
    return loaded


@torch.inference_mode()
def _output_layer(model: PreTrainedModel, name: str) -> OutputLayer:
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise InputError(
            f"model {name} ({type(model).__name__}): has no output layer; expected a causal language model"
        )
    with weights_at_hand(head):
        weight, bias = head.weight.detach(), getattr(head, "bias", None)
    if hasattr(head, "get_delta_weight") and not head.merged and not head.disable_adapters:
        # An adapter on the output layer. Merging it would also change the input embeddings when they are tied.
        for adapter in head.active_adapters:
            if adapter in head.lora_A or adapter in head.lora_embedding_A:
                weight = (weight.float() + head.get_delta_weight(adapter).float()).detach()
    config = model.config.get_text_config()
    # Cohere multiplies its logits, Granite divides them.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputLayer(weight, None if bias is None else bias.detach(), scale, softcap)


@torch.inference_mode()
def _self_check(loaded: LoadedModel) -> None:
    """Refuse a model whose own logits are not its output layer applied to its last hidden states."""
    ids = torch.arange(_CHECK_IDS, device=loaded.device).remainder(loaded.width)[None]
    try:
        ours = loaded.output_layer.logits(loaded.hidden(ids))
        own = loaded.model(input_ids=ids, use_cache=False).logits.to(ours)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemoryError(f"out of memory with {loaded.name}; try --dtype bfloat16") from None
        raise InputError(f"model {loaded.name}: cannot be replayed ({brief(error)})") from None
    fine = {torch.float32: 1e-3, torch.float64: 1e-3}.get(loaded.dtype, 0.03)
    scale = max(1.0, float(own.nan_to_num().abs().max()))
    if bool(torch.isfinite(own).all()) and float((own - ours).abs().max()) > fine * scale:
        raise InputError(
            f"model {loaded.name} ({type(loaded.model).__name__}): its logits are not its output layer applied to its "
            "last hidden states; this architecture is not supported"
        )


def _config_json(config: Any) -> str:
    """The configuration without where it came from."""
    values = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(values, sort_keys=True, default=str)


def _identity(model: PreTrainedModel, checkpoint: Checkpoint | None, layer: OutputLayer) -> dict[str, Any]:
    config = _config_json(model.config)
    identity: dict[str, Any] = {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(layer.weight.dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
    }
    if checkpoint is not None:
        identity |= {"path": checkpoint.path, "format": checkpoint.format, "step": checkpoint.step}
        identity |= {"revision": checkpoint.revision, "base": checkpoint.base}
    return identity


def eos_ids_of(generation_config: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The end-of-sequence ids of a generation_config and a tokenizer together, either of which may be None.

    Raises:
        InputError: the configuration states something else.
    """
    stated = getattr(generation_config, "eos_token_id", None)
    ids = list(stated) if isinstance(stated, (list, tuple)) else [stated]
    for token in ids:
        whole = isinstance(token, Integral) or (isinstance(token, float) and token.is_integer())
        if token is not None and (isinstance(token, bool) or not whole or token < 0):
            raise InputError(
                f"generation_config.json: eos_token_id is {str(stated)[:80]!r}; expected a token id or a list of them"
            )
    if tokenizer is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(sorted({int(token) for token in ids if token is not None}))


def state_digest(model: PreTrainedModel) -> str:
    """sha256 over the configuration, and names, shapes, types and bytes of the parameters, of a model in memory."""
    digest = hashlib.sha256(_config_json(model.config).encode())
    for name, adapter in sorted((getattr(model, "peft_config", None) or {}).items()):
        stated = {key: sorted(value) if isinstance(value, set) else value for key, value in adapter.to_dict().items()}
        digest.update((name + json.dumps(stated, sort_keys=True, default=str)).encode())  # its scale is no parameter
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise InputError(
                f"model {type(model).__name__}: {name} is offloaded, so that it cannot be compared with that of a "
                "stored trace; give the model's path, or keep the trace in memory with out=None"
            )
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
