"""Rows of a file that torch saved, none of whose code runs."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.errors import InputError


def torch_rows(path: Path, what: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, sample) for each of the ``samples``, whose step is the file's ``rollout_id``; or for each sequence
    of a batch as NeMo-RL dumps it, with ``input_ids`` and lists of a value for each.

    Raises:
        InputError: broken, of another layout, or with objects that only code of theirs could read.
    """
    content = load_data(path, what)
    if isinstance(content, dict) and {"input_ids", "token_mask"} <= content.keys():
        yield from _sequences(content, path, what)
        return
    if isinstance(content, dict) and "token_sample_index" in content:
        yield f"{what} {path}", content  # statistics that lie beside it, which no kind of rollouts recognises
        return
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, (list, tuple)):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{what} {path}: holds {held or 'nothing'}; expected rollout_id and samples, as slime writes")
    for number, sample in enumerate(samples):
        place = f"{what} {path}, sample {number}"
        if not isinstance(sample, dict):
            raise InputError(f"{place}: expected a dictionary, got {type(sample).__name__}")
        yield place, {**_listed(place, sample), "step": content.get("rollout_id")}


def _sequences(content: dict[str, Any], path: Path, what: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lists = _listed(f"{what} {path}", content)
    ids = lists["input_ids"]
    if not isinstance(ids, list):
        raise InputError(f"{what} {path}: input_ids is {type(ids).__name__}; expected a tensor, a row per sequence")
    shared = {name: value for name, value in lists.items() if not isinstance(value, list) or len(value) != len(ids)}
    for number in range(len(ids)):
        own = {name: value[number] for name, value in lists.items() if name not in shared}
        yield f"{what} {path}, sequence {number}", {**shared, **own}


def load_data(path: Path, what: str) -> Any:
    """What a torch file holds, tensors and plain values alone.

    Raises:
        InputError: broken, or with objects that only code of theirs could read.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_pieces_of_arrays()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise InputError(f"{what} {path}: not a whole torch file; copy it again") from None
        raise InputError(
            f"{what} {path}: holds {found.group(1)}, which only code of its own could read; none runs here, so save it "
            "without"
        ) from None
    except Exception as error:  # of a damaged file the unpickler raises whatever its instructions lead to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} {path}: not a whole torch file ({reason}); copy it again") from None


def _pieces_of_arrays() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What numpy arrays and numbers are pickled of: data too, which torch takes when it is named, new names and old."""
    pieces: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [np.ndarray, np.dtype]
    pieces += {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    for name, value in (("_reconstruct", np.empty(0)), ("scalar", np.float64(0))):
        build: Any = value.__reduce__()[0]
        pieces += [(build, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return pieces


def _holds_itself(value: Any, above: tuple[int, ...]) -> bool:
    """Whether a dictionary or list is found again inside itself, which pickles can say and nothing else can write."""
    if id(value) in above or len(above) > 100:
        return True
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_holds_itself(one, (*above, id(value))) for one in inside if isinstance(one, (dict, list, tuple)))


def _listed(place: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample with tensors and arrays as lists, those inside its lists and dictionaries too."""
    if _holds_itself(sample, ()):
        raise InputError(f"{place}: holds itself; expected plain values")
    return {name: _as_lists(f"{place}: {name}", value) for name, value in sample.items()}


def _as_lists(what: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_lists(what, one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_lists(what, one) for one in value]
    if not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except (RuntimeError, TypeError, ValueError) as error:  # sparse ones, and those without values
        raise InputError(f"{what} is a tensor of another kind ({error}); save its values") from None
