"""PEFT adapters on a base model: every value of the file has its place, and the result is peft's own model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd_probe.errors import InputError
from opd_probe.models.formats import peft as peft_format
from opd_probe.models.formats import verl_lora
from opd_probe.models.guards import brief, one_line, quiet
from opd_probe.models.tying import states_tied
from opd_probe.texts import read_json

_TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out", "output")
_VOCABULARY = re.compile(rf"\.({'|'.join((*_EMBEDDINGS, *_HEADS))})\.weight$")
"""The modules of a model that have a row for each token."""

_INSIDE = re.compile(r"\.(base_layer|token_adapter|modules_to_save|original_module)(?=\.)")
"""Where peft puts such a module that it adapts."""

_SHOWN = 8
"""Retrained tokens that a check looks at."""


def apply_adapter(model: PreTrainedModel, path: Path, dtype: torch.dtype | None, base: str) -> Any:
    """peft's model of a base and the adapter in a directory. The base is changed in place.

    Not merged: in bf16 the sum of a weight and its small change rounds the change away.

    Args:
        dtype: that was asked for; None: as stored.
        base: where the base came from, for messages.

    Raises:
        InputError: peft is not installed, or files that cannot be used; names the file or the first value that is
            missing or has no place.
    """
    peft = import_peft(path)
    file = path / peft_format.WEIGHTS
    check_safetensors(file)
    _refuse_offloaded(model, path, f" {base}")
    with one_line(f"adapter {path}"), quiet():
        config = peft.PeftConfig.from_pretrained(str(path))
        _refuse_kind(config, f"adapter {path}")
        _widen(model, file)
        adapted = peft.PeftModel.from_pretrained(model, str(path))
        stored = peft.utils.load_peft_weights(str(path), device="cpu")
        _fill(peft, adapted, stored, f"adapter {path}")
        return _as_asked(adapted, dtype)


def apply_weights(model: PreTrainedModel, path: Path, weights: Mapping[str, Any], dtype: torch.dtype | None) -> Any:
    """peft's model of a base and an adapter whose weights verl left among its shards. The base is changed in place.

    Args:
        weights: of the adapter, by the names that they have among the shards, as what gives a tensor when sliced.

    Raises:
        InputError: as :func:`apply_adapter`.
    """
    peft = import_peft(path)
    _refuse_offloaded(model, path)
    with one_line(f"checkpoint {path}"), quiet():
        stored = path / verl_lora.ADAPTER
        if (stored / peft_format.CONFIG).is_file():
            config = peft.PeftConfig.from_pretrained(str(stored))
        else:
            config = peft.LoraConfig(**verl_lora.adapter_config(path, list(weights)))
        _refuse_kind(config, f"checkpoint {path}")
        adapted = peft.PeftModel(model, config)
        tensors = {verl_lora.adapter_name(name): value[...] for name, value in weights.items()}
        _fill(peft, adapted, tensors, f"checkpoint {path}: the adapter")
        return _as_asked(adapted, dtype)


def plain(model: Any, name: str) -> PreTrainedModel:
    """A model without adapters, for one that another adapter goes on: its own is merged, as trainers do there.

    Raises:
        InputError: an adapter that cannot be merged.
    """
    if not hasattr(model, "get_base_model"):
        return model  # type: ignore[no-any-return]
    with (
        one_line(f"adapter {name}", "cannot be merged into its base, as another adapter on top of it asks for"),
        quiet(),
    ):
        return model.merge_and_unload()  # type: ignore[no-any-return]


def import_peft(path: Path) -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise InputError(f"checkpoint {path}: is a PEFT adapter; install peft: pip install 'opd-probe[peft]'") from None
    return peft


def is_lora(path: Path) -> bool:
    """Whether an adapter in a directory is a LoRA, which leaves the weights of its base as they are."""
    try:
        stated = read_json(path / peft_format.CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(stated, dict) and stated.get("peft_type") == "LORA"


def check_adapters(model: Any, name: str) -> None:
    """Refuse a model whose adapters a replay of real tokens cannot have at work.

    Raises:
        InputError: peft puts virtual tokens before the real ones, or an activated LoRA that nothing would switch on, or
            padding would.
    """
    for config in active_configs(model):
        _refuse_kind(config, f"model {name}", task=False)
        invocation = getattr(config, "alora_invocation_tokens", None)
        if invocation and not (isinstance(invocation, (list, tuple)) and all(isinstance(n, int) for n in invocation)):
            raise InputError(
                f"model {name}: alora_invocation_tokens of its activated LoRA is {str(invocation)[:80]}; expected "
                "token ids in a list"
            )
        if invocation and not hasattr(model, "get_base_model"):
            raise InputError(
                f"model {name}: an activated LoRA is in it, which peft's own model alone switches on; expected that "
                "PeftModel, or the adapter's path"
            )
        if invocation and invocation[-1] == 0:
            raise InputError(
                f"model {name}: the invocation tokens {list(invocation)} of its activated LoRA end in id 0, with which "
                "batches are padded; expected another last token"
            )


def adapter_ids(model: Any) -> list[int]:
    """Token ids with which a model's adapters do something of their own: some that they retrained, then those that
    switch one on."""
    return [token for config in active_configs(model) for token in _ids_of(config)]


def active_configs(model: Any) -> list[Any]:
    """The configurations of the adapters that are switched on in a model; none for one without adapters."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        return []
    active = getattr(model, "active_adapters", None)
    if callable(active):  # transformers' own record of adapters, which knows of none that peft put in by itself
        active = active() if getattr(model, "_hf_peft_config_loaded", False) else None
    return [configs[name] for name in (active or configs) if name in configs]


def _ids_of(config: Any) -> list[int]:
    invocation = list(getattr(config, "alora_invocation_tokens", None) or [])
    listed = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    retrained = listed if isinstance(listed, list) else [token for group in listed.values() for token in group]
    ids = [*retrained[:_SHOWN], *invocation]
    if not all(isinstance(token, int) for token in ids):
        raise InputError(f"adapter: its token ids are {str(ids)[:80]}; expected whole numbers in adapter_config.json")
    return ids


def _refuse_kind(config: Any, what: str, *, task: bool = True) -> None:
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError(
            f"{what}: {kind} adds virtual tokens, which a replay of real tokens cannot represent; expected an adapter "
            "of weights, such as LoRA"
        )
    if task and config.task_type not in (None, *_TASKS):
        raise InputError(
            f"{what}: was trained for the task {getattr(config.task_type, 'value', config.task_type)}; expected an "
            f"adapter of a causal language model ({_TASKS[0]})"
        )


def _refuse_offloaded(model: PreTrainedModel, path: Path, base: str = "") -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            f"adapter {path}: weights of its base{base} would be offloaded to main memory or disk, which peft "
            "does not support; use more or larger GPUs, --dtype bfloat16, or merge the adapter into the base"
        )


def _fill(peft: Any, adapted: Any, stored: Mapping[str, Tensor], what: str) -> None:
    """Read stored values into an adapter, each of them, and leave none of the adapter's at what it began with.

    What peft would save is filled with NaN first, so that a value that no name of the file reaches shows, whatever
    this kind of adapter calls it; peft itself passes over many.
    """
    for value in _own_values(peft, adapted).values():
        if value.is_floating_point():
            value.detach().fill_(torch.nan)
    result: Any = peft.set_peft_model_state_dict(adapted, dict(stored))
    placed = [value for name, value in stored.items() if name not in result.unexpected_keys]
    unplaced = sorted(name for name in result.unexpected_keys if not _is_copy(stored.get(name), placed))
    if unplaced:
        raise InputError(
            f"{what}: holds {unplaced[0]} ({len(unplaced)} such in all), for which the adapter has no place; its "
            f"weights and {peft_format.CONFIG} do not belong together, or its base is another"
        )
    left = sorted(
        name
        for name, value in _own_values(peft, adapted).items()
        if value.is_floating_point() and bool(value.isnan().all()) and not _is_nan(stored.get(name))
    )
    if left:
        raise InputError(
            f"{what}: weights are missing: {left[0]} ({len(left)} in all); save the adapter again with save_pretrained"
        )


def _is_copy(value: Tensor | None, others: Sequence[Tensor]) -> bool:
    """Whether a value is stored a second time, as peft stores those of a layer kept whole in a widened vocabulary."""
    return value is not None and any(torch.equal(value, other) for other in others)


def _own_values(peft: Any, adapted: Any) -> dict[str, Tensor]:
    """What peft would save of an adapter, by name; most of it the parameters themselves."""
    values: dict[str, Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: value for name, value in values.items() if value.numel()}


def _is_nan(value: Tensor | None) -> bool:
    return value is not None and value.is_floating_point() and bool(value.isnan().all())


def _as_asked(adapted: Any, dtype: torch.dtype | None) -> Any:
    if dtype in (torch.float32, torch.float64) and not getattr(adapted.get_base_model(), "is_quantized", False):
        adapted.to(dtype)
    return adapted


def _widen(model: PreTrainedModel, weights: Path) -> None:
    """Give the base the vocabulary of an adapter trained with tokens added to it.

    PEFT then stores the whole embedding and output layer, and refuses a base of another width.
    """
    embeddings: Any = model.get_input_embeddings()
    width = stored_width(weights, tied=states_tied(model.config))
    if width is not None and width != embeddings.weight.shape[0]:
        model.resize_token_embeddings(width, mean_resizing=False)


def stored_width(weights: Path, *, tied: bool) -> int | None:
    """The vocabulary that an adapter brings along whole, embedding and (unless ``tied``) output layer; else None."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118 (it has no __iter__)
    found = {name: match[1] for name in stored if (match := _VOCABULARY.search(_INSIDE.sub("", name))) is not None}
    layers = [any(module in names for module in found.values()) for names in (_EMBEDDINGS, _HEADS)]
    whole = any(layers) if tied else all(layers)  # or new rows would stay random
    rows = {stored[name] for name in found}
    return rows.pop() if len(rows) == 1 and whole else None


def check_safetensors(path: Path) -> None:
    """Refuse a file whose header and length do not make a safetensors file.

    Raises:
        InputError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({brief(error)}); copy or save the checkpoint again"
        ) from None
