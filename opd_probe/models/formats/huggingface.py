"""Hugging Face directories: what TRL, the transformers Trainer and most exporters write."""

from __future__ import annotations

import re
from pathlib import Path

from opd_probe.errors import InputError
from opd_probe.models.formats.headers import (
    Headers,
    TensorHeader,
    is_book_keeping,
    is_packing,
    read_json_object,
    safetensors_headers,
)
from opd_probe.texts import read_json, within

ACCEPTED = "config.json with model.safetensors or its index and shards"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DistributedDataParallel or DeepSpeed",
    "base_model.model": "peft",
    "pretrained_model": "TRL's model with a value head",
}
"""What training puts around a model or its layers, by the name of what is inside."""

_IN_FRONT = ("module", "base_model.model", "pretrained_model")
"""Those that are such a thing only in front of all."""

_ADAPTER = re.compile(r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)(\.|$)")


def recognises(path: Path) -> bool:
    """config.json beside weights in safetensors."""
    return (path / "config.json").is_file() and ((path / SINGLE).is_file() or (path / INDEX).is_file())


def refuses(path: Path) -> str | None:
    """Shards whose index, which is written last, is not there, weights twice, or weights that are pickled."""
    if not (path / "config.json").is_file():
        return None
    if recognises(path):
        return _twice(path)
    if any(path.glob("model-*-of-*.safetensors")):
        return f"shards without {INDEX}, which is written last: its save did not finish, or copy the whole checkpoint"
    return pickled(path, "pytorch_model")


def _twice(path: Path) -> str | None:
    """Why a file of all weights beside an index of others is refused: transformers would read the one, vLLM the others,
    and neither name nor date says which the trainer meant."""
    if not ((path / SINGLE).is_file() and (path / INDEX).is_file()):
        return None
    shards = _indexed(path)
    if SINGLE in shards or not all((path / name).is_file() for name in shards):
        return None
    return (
        f"{SINGLE} beside {INDEX} and its {len(shards)} shards, two sets of weights of which one is left over; remove "
        "that one"
    )


def _indexed(path: Path) -> list[str]:
    """The files that an index names.

    Raises:
        InputError: it is not readable.
    """
    index = path / INDEX
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        return [name for name in names if within(path, name)]
    except FileNotFoundError:
        raise InputError(f"{path / SINGLE}: is no longer there, nor is {INDEX}; copy the checkpoint again") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not a safetensors index ({error}); save the checkpoint again") from None


def headers(path: Path) -> Headers:
    """Shapes and types of the weights, under the names that transformers gives them.

    Raises:
        InputError: a file that is not whole, or names and shapes that show how the weights were saved amiss.
    """
    found, config = safetensors_headers(weight_files(path)), read_json_object(path / "config.json")
    stated = [config, config.get("text_config") or {}]
    plain = not any("quantization_config" in one for one in stated)
    for name in sorted(found):
        if (reason := _amiss(name, found[name], plain)) is not None:
            raise InputError(f"checkpoint {path}: {reason}")
    return found


def _amiss(name: str, header: TensorHeader, plain: bool) -> str | None:
    """What the name, the shape or the type of a weight shows of a save that went wrong.

    Args:
        plain: the configuration says nothing of quantisation.
    """
    if plain and (is_packing(name) or (name.endswith("weight") and "int" in header.dtype)):
        return (
            f"the weights hold {name} ({header.dtype}), which is of a quantised model, and config.json has no "
            "quantization_config that says how it is read; copy the config.json that was saved with it, or save the "
            "model again dequantised"
        )
    around = (w for w in _WRAPPERS if name.startswith(f"{w}.") or (w not in _IN_FRONT and f".{w}." in name))
    if (wrapper := next(around, None)) is not None:
        return (
            f"{name} has the name that {_WRAPPERS[wrapper]} gives it ({wrapper}.); save the model that is inside, or "
            f"take {wrapper}. out of the names"
        )
    if _ADAPTER.search(name):
        return (
            f"{name} is of an adapter that was neither merged nor saved by itself, so that its scale is not known; "
            "save the merge_and_unload() of the model, or the adapter with peft's save_pretrained"
        )
    if 0 in header.shape and not is_book_keeping(name):
        return (
            f"{name} is empty (shape {list(header.shape)}), as the weights that DeepSpeed ZeRO-3 keeps elsewhere; "
            "save again with stage3_gather_16bit_weights_on_model_save, or put them together with zero_to_fp32.py"
        )
    return None


def pickled(path: Path, stem: str) -> str | None:
    """Why weights that are there as a pickle alone are refused; None: there are none."""
    found = next(iter(sorted(path.glob(f"{stem}*.bin"))), None)
    if found is None:
        return None
    return f"weights in {found.name} alone, a pickle; load it in transformers and save_pretrained() it as safetensors"


def weight_files(path: Path) -> list[Path]:
    """The safetensors files, in name order.

    Raises:
        InputError: the index is not readable, or names a shard that is not there.
    """
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    names = _indexed(path)
    for name in names:
        if not (path / name).is_file():
            raise InputError(f"{path / INDEX}: names the shard {name}, which is not there; copy the whole checkpoint")
    return [path / name for name in names]
