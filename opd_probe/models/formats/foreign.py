"""Weights as other programs keep them, which transformers cannot read: what they are, and what converts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import opd_probe.models.formats.huggingface as huggingface
from opd_probe.models.directories import is_directory
from opd_probe.texts import read_text, within

_ZERO_STATES = ("*zero_pp_rank_*_optim_states.pt", "zero_pp_rank_*_model_states.pt", "mp_rank_*_model_states.pt")


def refuses(path: Path) -> str | None:
    """What a directory holds in place of weights that can be read; None: nothing of the kind."""
    if (path / huggingface.SINGLE).is_file() or (path / huggingface.INDEX).is_file():
        return None
    return next((reason for known in _KNOWN if (reason := known(path)) is not None), None)


def _deepspeed(path: Path) -> str | None:
    below = _tag(path)
    where = path if _holds_any(path, _ZERO_STATES) else below
    if where is None or not _holds_any(where, _ZERO_STATES):
        return None
    root = path.parent if where == path else path
    what = "ZeRO shards" if _holds_any(where, _ZERO_STATES[:2]) else "states"
    return (
        f"DeepSpeed's {what} ({'' if where == path else f'{where.name}/'}{_first(where, _ZERO_STATES)}); put them "
        f"together with the script that DeepSpeed leaves beside them (python {root / 'zero_to_fp32.py'} {root} OUTPUT "
        "--safe_serialization), copy config.json and tokenizer there and give OUTPUT"
    )


def _tag(path: Path) -> Path | None:
    """The folder that ``latest`` names."""
    try:
        name = read_text(path / "latest").strip()
        below = within(path, name)
    except (OSError, ValueError):
        return None
    return below if name and is_directory(below) else None


def _meta(path: Path) -> str | None:
    where = next((place for place in (path, path / "original") if any(place.glob("consolidated.*.pth"))), None)
    if where is None:
        return None
    return (
        f"Meta's original weights ({_first(where, ('consolidated.*.pth',))}), which are pickled; give the Hugging Face "
        "weights of the same model, or convert these with transformers 4 (models/llama/convert_llama_weights_to_hf.py)"
    )


def _mistral(path: Path) -> str | None:
    found = _first(path, ("consolidated.safetensors", "consolidated-*.safetensors"))
    if found is None:
        return None
    return (
        f"weights in Mistral's own names ({found}); give the model.safetensors of the same model, or convert these "
        "with transformers 4 (models/mistral/convert_mistral_weights_to_hf.py)"
    )


def _megatron(path: Path) -> str | None:
    if not any(path.glob("*.distcp")):
        return None
    try:
        stated = read_text(path / "metadata.json")
    except (OSError, UnicodeDecodeError):
        return None
    if "sharded_backend" not in stated:
        return None
    return (
        f"Megatron's distributed checkpoint ({_first(path, ('*.distcp',))}); convert it with the trainer's own tool "
        "(examples/conversion/convert_checkpoints.py of Megatron-Bridge, tools/convert_torch_dist_to_hf.py of slime, "
        "examples/converters/convert_megatron_to_hf.py of NeMo-RL) and give the Hugging Face directory"
    )


_KNOWN: tuple[Callable[[Path], str | None], ...] = (_deepspeed, _meta, _mistral, _megatron)


def _holds_any(path: Path, patterns: tuple[str, ...]) -> bool:
    return _first(path, patterns) is not None


def _first(path: Path, patterns: tuple[str, ...]) -> str | None:
    return next((file.name for pattern in patterns for file in sorted(path.glob(pattern))), None)
