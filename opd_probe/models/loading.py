"""Loading models: tensors only, no foreign code, one line when it fails."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd_probe.errors import InputError
from opd_probe.models.adapters import check_adapters
from opd_probe.models.bases import Bases
from opd_probe.models.batches import outputs
from opd_probe.models.bodies import Body, Caching, Past
from opd_probe.models.checkpoints import format_of, headers_of, resolve_checkpoint
from opd_probe.models.formats.headers import stored_dtype
from opd_probe.models.guards import brief
from opd_probe.models.hub import localized, tokenizer_place
from opd_probe.models.in_memory import config_json, written
from opd_probe.models.lengths import LengthFactors
from opd_probe.models.paths import paths_of
from opd_probe.models.placeholders import placeholder_ids
from opd_probe.models.placement import DeviceMap, check_device_map, input_device, input_embeddings
from opd_probe.models.positions import max_positions
from opd_probe.models.quantised import quantisation_of_model
from opd_probe.models.readout import OutputLayer as OutputLayer
from opd_probe.models.trials import Paths, Trial
from opd_probe.models.tying import warn_of_untied
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.models.weights import read_model
from opd_probe.types import Checkpoint, LengthRule

DTYPES = ("float32", "bfloat16", "float16", "float64")

PREFILL_TOKENS = 8192
"""Tokens of one sequence that go through the layers at once."""

MASK_VALUES = 2**25
"""Pairs of new and known tokens that attention may look at at once, in a sequence that goes through piece by piece."""


@dataclass
class LoadedModel:
    """A model ready to be replayed.

    Attributes:
        model: in evaluation mode.
        name: for messages and labels.
        tokenizer: None for a model in memory that came without one.
        identity: JSON values that say what was loaded, for provenance.
        output_layer: what turns hidden states into logits.
        paths: which ways of calling it are exact.
        written: how often torch had seen its parameters change when it was loaded.
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
    paths: Paths = field(default_factory=Paths, repr=False)
    written: int = field(default=0, repr=False)

    @property
    def is_as_loaded(self) -> bool:
        """Whether its weights are those of its checkpoint still, as far as torch has seen."""
        return self.checkpoint is not None and written(self.model) == self.written

    @property
    def width(self) -> int:
        """The width W of the output layer."""
        return int(self.output_layer.weight.shape[0])

    @cached_property
    def readable(self) -> int:
        """Below it ids can be read as well as predicted: an output layer may be wider than the embeddings."""
        weight = getattr(input_embeddings(self.model), "weight", None)
        return self.width if weight is None or weight.dim() != 2 else min(self.width, int(weight.shape[0]))

    @property
    def max_positions(self) -> int | None:
        """How many positions the model was built for, when it says."""
        return max_positions(self.model.config)

    @cached_property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Ids that stand for pieces of an image, a video or a sound, and are no text."""
        return placeholder_ids(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where its inputs go; its hidden states come out where the output layer is."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in: of its embeddings, since an adapter may widen the output layer."""
        return computing_type(self.model, self.output_layer)

    @cached_property
    def length_factors(self) -> LengthFactors | None:
        """What of it depends on the length of a call; None: nothing."""
        return LengthFactors.of(self.model)

    def factors_of(self, length: int) -> AbstractContextManager[None]:
        """While the block runs, its factors are those of a call of so many tokens."""
        factors = self.length_factors
        return nullcontext() if factors is None else factors.of_length(length)

    @cached_property
    def body(self) -> Body:
        """The model without its output layer, as a function."""
        return Body(self.model, self.paths.kind)

    def cache_for(self, what: str) -> Caching | None:
        """The caching with which a path is exact, None where none is; found out when it is first asked for.

        Args:
            what: see :meth:`opd_probe.models.trials.Trial.verdict`.
        """
        if what not in self.paths.verdicts:
            self.paths.verdicts[what] = Trial(self.model, self.name).verdict(self.paths, self.output_layer, what)
        return self.paths.verdicts[what]

    def hidden(self, input_ids: Tensor, shared: int = 0) -> Tensor:
        """Inputs of the output layer, [B, T - shared, d], where that layer is, for ids [B, T] padded on the right.

        Without an attention mask: a causal model at a real token never sees what is right of it. Sequences longer than
        :data:`PREFILL_TOKENS` go through a key-value cache in pieces of that many tokens, or of fewer where
        :data:`MASK_VALUES` asks for it, which bounds what the layers hold at a time; where no cache is exact for this
        model, they go through whole.

        Args:
            shared: tokens at the start that are the same in every row: they go through the layers once where that is
                exact for this model, and their hidden states are not returned.
        """
        once = self.cache_for("shared") if shared > 0 else None
        long = input_ids.shape[1] > PREFILL_TOKENS
        how = self.cache_for("pieces") if long else once
        if how is None or (not long and once is None):
            return self.advance(input_ids, None)[:, shared:]
        past = Past(how)
        size = max(1, min(PREFILL_TOKENS, MASK_VALUES // input_ids.shape[1]))
        if once is not None:
            for piece in input_ids[:1, :shared].split(size, dim=1):
                self.advance(piece, past)
            past.select(torch.zeros(len(input_ids), dtype=torch.int64))
        start = shared if once is not None else 0
        pieces = input_ids[:, start:].split(size, dim=1)
        return torch.cat([self.advance(piece, past) for piece in pieces], dim=1)[:, shared - start :]

    def advance(self, input_ids: Tensor, past: Past | None) -> Tensor:
        """Hidden states [B, T, d] of new tokens [B, T] behind what ``past`` holds, which grows by T tokens."""
        return self.body(input_ids, past).to(self.output_layer.weight.device)

    def outputs(
        self,
        ids: Sequence[NDArray[np.int64]],
        index: Sequence[NDArray[np.int64]],
        shared: int = 0,
        *,
        wholes: Sequence[int] | None = None,
        rule: LengthRule = "prefix",
    ) -> Tensor:
        """Inputs of the output layer at some places of several sequences, [N, d], one sequence after another.

        Args:
            ids: tokens of each sequence.
            index: ascending places in each sequence, at least one.
            shared: tokens at the start that are the same in all, before the first place of each.
            wholes: the lengths of the whole rollouts, where ``ids`` are parts of them.
            rule: whose length decides the factors of a model that has several.
        """
        return outputs(self, ids, index, shared, wholes=wholes, rule=rule)


def load_model(
    source: Any,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    bases: Bases | None = None,
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
        bases: where the base of an adapter is kept for others; None: it is read for this one alone.

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
            local,
            None if dtype is None else getattr(torch, dtype),
            place,
            trust_remote_code=trust_remote_code,
            bases=bases,
        )
        loaded = _wrap(model, source, tokenizer_for(local, tokenizer, trust_remote_code=trust_remote_code))
        loaded.identity["stored_dtype"] = stored_dtype(headers_of(local))
        if not format_of(local).adapter(Path(local.path)):
            warn_of_untied(model, source.path)
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
    place = given if given is not None else tokenizer_place(checkpoint)
    return load_tokenizer(place, required=given is not None, trust_remote_code=trust_remote_code)


def _wrap(
    model: PreTrainedModel, checkpoint: Checkpoint | None, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedModel:
    model.eval()
    name = checkpoint.path if checkpoint is not None else type(model).__name__
    check_adapters(model, name)
    paths, layer = paths_of(model, name)
    return LoadedModel(
        model,
        name,
        tokenizer,
        _identity(model, checkpoint, layer),
        layer,
        checkpoint,
        eos_ids_of(getattr(model, "generation_config", None), tokenizer),
        paths,
        written(model),
    )


def computing_type(model: Any, layer: OutputLayer) -> torch.dtype:
    """The type of a model's embeddings; where these are packed, of its output layer."""
    weight: Tensor = getattr(input_embeddings(model), "weight", layer.weight)
    plain = weight.is_floating_point() and weight.element_size() > 1
    return weight.dtype if plain else layer.weight.dtype


def _identity(model: PreTrainedModel, checkpoint: Checkpoint | None, layer: OutputLayer) -> dict[str, Any]:
    config, inner = config_json(model.config), getattr(model, "get_base_model", None)  # what peft wrapped
    identity: dict[str, Any] = {
        "architecture": type(inner() if callable(inner) else model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(computing_type(model, layer)).removeprefix("torch."),
        "device": str(input_device(model)),
        "attention": getattr(model.config, "_attn_implementation", None),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
    }
    if (quantisation := quantisation_of_model(model)) is not None:
        identity["quantisation"] = quantisation
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
