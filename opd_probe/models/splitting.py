"""What files say of how text becomes ids: the chat template, and the parts of a tokenizer. No tokenizer is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_probe.errors import OpdProbeError
from opd_probe.models.checkpoints import tokenizer_home
from opd_probe.models.hub import tokenizer_place
from opd_probe.texts import read_json, read_text, real_path
from opd_probe.types import Checkpoint

TEMPLATE = "chat template"
_PARTS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "vocabulary",
    "added_tokens": "added tokens",
    "post_processor": "post-processor",
}
"""Fields of tokenizer.json, and what they are called; padding, truncation and the decoder make no ids of text."""

_SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space")
_OLDER = ("tokenizer.model", "vocab.json", "merges.txt")
"""Files that hold the vocabulary where there is no tokenizer.json."""


def differing_parts(first: Path, second: Path) -> list[str]:
    """What of two tokenizers' directories makes other ids of the same messages or text, in words; empty: nothing.

    A directory without a tokenizer differs from none.
    """
    files = _whole(tokenizer_home(first)), _whole(tokenizer_home(second))
    if not all(files) or files[0] == files[1]:
        return []
    one, other = _parts(tokenizer_home(first)), _parts(tokenizer_home(second))
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def stored_template(place: Path) -> Any:
    """The chat template beside a tokenizer, or several by name; None: there is none."""
    file = place / "chat_template.jinja"
    if file.is_file():
        return read_text(file, errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (found := _read(place / name).get("chat_template")) is not None:
            return found
    return None


def tokenizers_differ(checkpoints: Iterable[Checkpoint]) -> list[tuple[Checkpoint, list[str]]]:
    """Of several checkpoints, those that make other ids of text than the first, and by what.

    What cannot be looked at differs from none; who loads it says what is wrong.
    """
    reference: Path | None = None
    found = []
    for checkpoint in checkpoints:
        try:
            place = Path(tokenizer_place(checkpoint))
        except OpdProbeError:
            continue
        if not _whole(tokenizer_home(place)):
            continue
        if reference is None:
            reference = place
        elif parts := differing_parts(reference, place):
            found.append((checkpoint, parts))
    return found


def _whole(place: Path) -> dict[str, bytes]:
    """Digests of the files, which tell quickly that two tokenizers are the same."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", *_OLDER)
    return {name: _digest(place / name) for name in names if (place / name).is_file()}


def _parts(place: Path) -> dict[str, str]:
    found = _fast(place / "tokenizer.json") if (place / "tokenizer.json").is_file() else {}
    if not found:
        olds = {name: _digest(place / name).hex() for name in _OLDER}
        found = {"vocabulary": json.dumps(olds)}
    settings = _read(place / "tokenizer_config.json")
    stated = {name: settings.get(name) or None for name in _SETTINGS}
    return {TEMPLATE: json.dumps(stored_template(place)), **found, ", ".join(_SETTINGS): json.dumps(stated)}


def _fast(file: Path) -> Mapping[str, str]:
    state = file.stat()
    return _parts_of_file(real_path(file), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _parts_of_file(file: Path, size: int, mtime_ns: int) -> Mapping[str, str]:
    del size, mtime_ns
    content = _read(file)
    return {
        name: hashlib.sha256(json.dumps(content.get(field), sort_keys=True).encode()).hexdigest()
        for field, name in _PARTS.items()
        if content
    }


def _digest(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return b""


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
