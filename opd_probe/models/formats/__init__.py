"""Checkpoint formats, one module each. To add one, write its module and enter it into :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_probe.models.formats import (
    around,
    bare,
    dcp,
    foreign,
    gguf,
    hub_cache,
    huggingface,
    megatron,
    peft,
    prime_rl,
    verl_fsdp,
    verl_lora,
)
from opd_probe.models.formats.headers import Headers, of_weight_files


@dataclass(frozen=True, slots=True)
class Format:
    """What a checkpoint format knows of a directory.

    Attributes:
        name: as recorded in a checkpoint and in a trace.
        accepted: what the directory must hold, for error messages; empty where another format says it too.
        recognises: whether a directory is such a checkpoint, by its file names alone.
        weight_files: the files that hold the weights, in name order.
        headers: shapes and types of the weights by name; values are not read.
        base: the model that the weights change (a path or a hub id), or None.
        adapter: whether the weights change those of a base model, without which they are none.
        home: the directory with config.json and the tokenizer; None: it has to be that of a base model.
        tokenizer: the directory with the tokenizer, where that may be another; None: that of the configuration.
        settings: files beside the weights, config.json aside, that shape a model's numbers.
        inside: the directory below this one that holds the checkpoint, or None.
        refuses: why a directory that such a trainer wrote cannot be used, in words that follow its path; or None.
        read: weights by name for transformers, as tensors or as what gives one when sliced, from a directory, the type
            that they are asked for in (None: as stored) and the names that the architecture has; None: transformers
            reads the directory itself.
    """

    name: str
    accepted: str
    recognises: Callable[[Path], bool]
    weight_files: Callable[[Path], list[Path]]
    headers: Callable[[Path], Headers]
    base: Callable[[Path], str | None] = lambda _: None
    adapter: Callable[[Path], bool] = lambda _: False
    home: Callable[[Path], Path | None] = lambda path: path
    tokenizer: Callable[[Path], Path | None] = lambda _: None
    settings: tuple[str, ...] = ()
    inside: Callable[[Path], Path | None] = lambda _: None
    refuses: Callable[[Path], str | None] = lambda _: None
    read: Callable[[Path, Any, frozenset[str]], dict[str, Any]] | None = None


FORMATS: tuple[Format, ...] = (
    Format("hub-cache", "", lambda _: False, lambda _: [], lambda _: {}, inside=hub_cache.inside),
    Format(
        "prime-rl",
        "",
        lambda _: False,
        lambda _: [],
        lambda _: {},
        inside=prime_rl.inside,
        refuses=prime_rl.refuses,
    ),
    Format(
        "peft",
        peft.ACCEPTED,
        peft.recognises,
        peft.weight_files,
        of_weight_files(peft.weight_files),
        base=peft.base,
        adapter=lambda _: True,
        settings=(peft.CONFIG,),
        inside=peft.inside,
        refuses=peft.refuses,
    ),
    Format(
        "huggingface",
        huggingface.ACCEPTED,
        huggingface.recognises,
        huggingface.weight_files,
        huggingface.headers,
        refuses=huggingface.refuses,
    ),
    Format("foreign", "", lambda _: False, lambda _: [], lambda _: {}, refuses=foreign.refuses),
    Format(
        "verl-lora",
        "",
        verl_lora.recognises,
        verl_fsdp.weight_files,
        verl_lora.headers,
        base=verl_lora.base,
        adapter=verl_lora.adapter,
        home=verl_fsdp.home,
        settings=(verl_lora.META, f"{verl_lora.ADAPTER}/{peft.CONFIG}"),
        inside=verl_lora.inside,
        refuses=verl_lora.refuses,
    ),
    Format(
        "verl-fsdp",
        verl_fsdp.ACCEPTED,
        verl_fsdp.recognises,
        verl_fsdp.weight_files,
        verl_fsdp.headers,
        home=verl_fsdp.home,
        inside=verl_fsdp.inside,
        refuses=verl_fsdp.refuses,
        read=verl_fsdp.read,
    ),
    Format(
        "megatron",
        megatron.ACCEPTED,
        lambda _: False,
        lambda _: [],
        lambda _: {},
        inside=megatron.inside,
        refuses=megatron.refuses,
    ),
    Format(
        "dcp",
        dcp.ACCEPTED,
        dcp.recognises,
        dcp.weight_files,
        dcp.headers,
        base=around.trained_from,
        home=dcp.home,
        tokenizer=around.tokenizer_home,
        inside=dcp.inside,
        refuses=dcp.refuses,
        read=dcp.read,
    ),
    Format(
        "safetensors",
        bare.ACCEPTED,
        bare.recognises,
        bare.weight_files,
        bare.headers,
        base=around.trained_from,
        home=around.config_home,
        tokenizer=around.tokenizer_home,
        inside=bare.inside,
        read=bare.read,
    ),
    Format(
        "gguf",
        gguf.ACCEPTED,
        gguf.recognises,
        gguf.weight_files,
        gguf.headers,
        inside=gguf.inside,
        refuses=gguf.refuses,
    ),
)
"""Asked in this order; the first that recognises a directory, leads further down or refuses it has it."""
