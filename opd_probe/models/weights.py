"""From a checkpoint to a transformers model: tensors only, no foreign code, nothing invented."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationConfig,
    PreTrainedModel,
)

from opd_probe.errors import InputError, MissingError, OpdProbeError
from opd_probe.models.adapters import apply_adapter, apply_weights, check_safetensors, import_peft, is_lora, plain
from opd_probe.models.bases import Bases
from opd_probe.models.checkpoints import format_of, headers_of, resolve_checkpoint
from opd_probe.models.completeness import check_complete, check_depth, check_sizes, misfit
from opd_probe.models.formats import gguf, verl_fsdp, verl_lora
from opd_probe.models.formats.headers import BYTES, Headers, headers_of_values, stored_dtype
from opd_probe.models.formats.peft import WEIGHTS
from opd_probe.models.gguf import gguf_config, read_gguf
from opd_probe.models.guards import one_line, quiet
from opd_probe.models.hub import home_of, localized
from opd_probe.models.placement import DeviceMap
from opd_probe.models.quantised import quantisation_of, reading, settle
from opd_probe.texts import read_json
from opd_probe.types import Checkpoint


def read_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    place: torch.device | DeviceMap,
    *,
    trust_remote_code: bool = False,
    bases: Bases | None = None,
) -> PreTrainedModel:
    """The model of a local checkpoint; an adapter is applied to its base and stays a separate term.

    Args:
        dtype: of the weights; None: as stored.
        place: one device, or how the model is spread over several.
        bases: where the base of an adapter is kept for others.

    Raises:
        InputError: names the file, or the first weight that is missing or of another shape.
        MissingError: an adapter's base model cannot be had.
    """
    path = Path(checkpoint.path)
    if checkpoint.format == "peft":
        return _read_adapter(checkpoint, path, dtype, place, trust_remote_code, bases)
    known = format_of(checkpoint)
    if known.name == "gguf":
        return read_gguf(path, dtype, place)
    if known.name == "verl-lora":
        return _read_wrapped(checkpoint, dtype, place, trust_remote_code, bases)
    if known.read is not None:
        headers = headers_of(checkpoint)
        read = partial(known.read, path, dtype)
        return _from_weights(checkpoint, read, dtype or _stored(headers), place, trust_remote_code)
    headers, config = headers_of(checkpoint), read_config(path, trust_remote_code)
    check_sizes(path, config, headers)
    return _finish(
        checkpoint,
        _class_for(config).from_pretrained,
        str(path),
        stated=config,
        headers=headers,
        place=place,
        asked=dtype,
        dtype=dtype or type_to_load(headers, config),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )


def _class_for(config: Any) -> Any:
    """Through which class of transformers a configuration becomes a model: the one that gives the architecture that the
    checkpoint was saved from; else a causal language model where its type is one, else one that reads images or sounds
    beside its text (Qwen-VL, Mistral 3)."""
    known: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    fitting = [auto for auto in known if type(config) in auto._model_mapping]
    saved = config.architectures or ()

    def gives(auto: Any) -> bool:
        found = auto._model_mapping[type(config)]
        return any(one.__name__ in saved for one in (found if isinstance(found, tuple) else (found,)))

    return next((auto for auto in fitting if gives(auto)), [*fitting, known[0]][0])


def _from_weights(
    checkpoint: Checkpoint,
    read: Callable[[frozenset[str]], dict[str, Any]],
    dtype: torch.dtype,
    place: torch.device | DeviceMap,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """A model of weights that are read by us, with the configuration of its home.

    Args:
        read: weights by name, as ``Format.read`` gives them, for the names that the architecture has.
    """
    home = home_of(checkpoint)
    config = read_config(home, trust_remote_code)
    check_sizes(home, config, headers_of(checkpoint))
    with one_line(f"checkpoint {checkpoint.path}"), quiet(), torch.device("meta"):
        plan = _class_for(config).from_config(config, trust_remote_code=trust_remote_code)
    expected = plan.state_dict()
    weights = read(frozenset(expected))
    for name, weight in sorted(weights.items()):  # before transformers stumbles over tied weights of other shapes
        if name in expected and tuple(weight.shape) != tuple(expected[name].shape):
            raise misfit(Path(checkpoint.path), name, weight.shape, expected[name].shape)
    load = type(plan).from_pretrained
    headers = headers_of_values(weights)
    options = {"dtype": dtype, "config": config, "state_dict": weights}
    model = _finish(checkpoint, load, None, stated=config, headers=headers, place=place, asked=dtype, **options)
    model.generation_config = read_generation_config(home, config)
    return model


def _finish(
    checkpoint: Checkpoint,
    load: Callable[..., Any],
    *source: Any,
    stated: Any,
    headers: Headers,
    place: torch.device | DeviceMap,
    asked: torch.dtype | None,
    **options: Any,
) -> PreTrainedModel:
    """Load, and refuse what transformers would fill with random numbers or pass over.

    Args:
        source, options: for ``load``.
        stated: the configuration.
        headers: of the stored weights.
        place: one device, or how the model is spread over several.
        asked: the type that was asked for.
    """
    path, quantised = Path(checkpoint.path), quantisation_of(stated) is not None
    spread: DeviceMap | None = None if isinstance(place, torch.device) else place
    if isinstance(place, torch.device) and quantised and place.type != "cpu":
        spread = {"": place}  # many packed weights cannot be moved once they are there
    with reading(path, stated), quiet():
        loaded: Any = load(
            *source,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
            **({} if spread is None else {"device_map": spread}),
        )
        model, info = loaded
        check_complete(path, model, info, headers)
        moved: PreTrainedModel = model.to(place) if spread is None else model
        if quantised:
            settle(moved, stated, asked)
    return moved


def type_to_load(headers: Headers, config: Any) -> torch.dtype | Literal["auto"]:
    """The type that weights are stored in, whatever config.json says: trainers write float32 weights beside one that
    says bfloat16. Quantised weights are left to their own loader."""
    plain = getattr(config, "quantization_config", None) is None and stored_dtype(headers) in BYTES
    return _stored(headers) if plain else "auto"


def _stored(headers: Headers) -> torch.dtype:
    return getattr(torch, stored_dtype(headers) or "float32")  # type: ignore[no-any-return]


def _read_adapter(
    checkpoint: Checkpoint,
    path: Path,
    dtype: torch.dtype | None,
    place: torch.device | DeviceMap,
    trust_remote_code: bool,
    bases: Bases | None,
) -> PreTrainedModel:
    """The base model with the adapter's layers in it.

    Not merged: in bf16 the sum of a weight and its small change rounds the change away.
    """
    base = _base_of(checkpoint, trust_remote_code)
    import_peft(path)  # before a model is loaded in vain
    check_safetensors(path / WEIGHTS)
    model = _read_base(checkpoint, base, dtype, place, trust_remote_code, bases if is_lora(path) else None)
    adapted: PreTrainedModel = apply_adapter(model, path, dtype, base.path)
    return adapted


def _read_base(
    checkpoint: Checkpoint,
    base: Checkpoint,
    dtype: torch.dtype | None,
    place: torch.device | DeviceMap,
    code: bool,
    bases: Bases | None,
) -> PreTrainedModel:
    """The model that an adapter goes on, which may be changed."""

    def read() -> PreTrainedModel:
        return plain(read_model(base, dtype, place, trust_remote_code=code), base.path)

    if bases is None or checkpoint.base is None or not isinstance(place, torch.device):
        return read()
    return bases.model(checkpoint.base, base, (dtype, place, code), read)


def _base_of(checkpoint: Checkpoint, code: bool) -> Checkpoint:
    """The base model of an adapter, on this machine."""
    if checkpoint.base is None:
        raise InputError(
            f"checkpoint {checkpoint.path}: adapter_config.json names no base model; add base_model_name_or_path, or "
            "name the base with --base MODEL"
        )
    try:
        return localized(resolve_checkpoint(checkpoint.base), code=code)
    except OpdProbeError as error:
        raise MissingError(
            f"adapter {checkpoint.path}: its base model cannot be had: {error}; set base_model_name_or_path in "
            "adapter_config.json, or name the base with --base MODEL"
        ) from None


def _read_wrapped(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    place: torch.device | DeviceMap,
    trust_remote_code: bool,
    bases: Bases | None,
) -> PreTrainedModel:
    """The model of shards that hold an adapter: its base from among them too, or else another checkpoint."""
    path = Path(checkpoint.path)
    weights = verl_fsdp.merged(path)
    adapter = {name: value for name, value in weights.items() if verl_lora.is_adapter_weight(name)}
    own = {verl_lora.base_name(name): value for name, value in weights.items() if name not in adapter}
    if own:
        headers = headers_of(checkpoint)
        kept = _stored({name: header for name, header in headers.items() if name not in adapter})
        model = _from_weights(checkpoint, lambda _: own, dtype or kept, place, trust_remote_code)
    else:
        base = _base_of(checkpoint, trust_remote_code)
        model = _read_base(checkpoint, base, dtype, place, trust_remote_code, bases)
    adapted: PreTrainedModel = apply_weights(model, path, adapter, dtype)
    return adapted


def read_config(path: Path, trust_remote_code: bool = False) -> Any:
    """The configuration in a local directory, or in a GGUF file.

    Raises:
        InputError: config.json cannot be used.
    """
    if gguf.recognises(path):
        return gguf_config(path)
    with one_line(f"{path / 'config.json'}"), quiet():
        stated = read_json(path / "config.json")
        check_depth(path, stated)
        _check_architectures(path, stated)
        return AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=trust_remote_code)


def _check_architectures(path: Path, stated: Any) -> None:
    named = stated.get("architectures") if isinstance(stated, dict) else None
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise InputError(f"{path / 'config.json'}: architectures is {named!r}; expected a list of names")


def read_generation_config(home: Path, config: Any) -> Any:
    """The generation settings beside a configuration, or those that follow from it.

    Raises:
        InputError: generation_config.json cannot be used.
    """
    with one_line(f"{home / 'generation_config.json'}"), quiet():
        if (home / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(str(home), local_files_only=True)
        return GenerationConfig.from_model_config(config)
