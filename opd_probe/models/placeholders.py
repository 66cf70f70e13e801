"""Ids of a multimodal checkpoint's vocabulary that are no text: each stands for a piece of an image, video or sound."""

from __future__ import annotations

import re
from typing import Any

_PLACEHOLDER = re.compile(r"^(image|img|video|audio|sound|speech|media|vision|visual)(_pad|_patch)?_token_(id|index)$")


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """The ids, ascending, in whose place a model with such a configuration puts what it made of an image, a video or
    a sound; none of a model of text."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    stated = [value for part in parts if part is not None for value in _stated(part)]
    return tuple(sorted({int(value) for value in stated}))


def _stated(config: Any) -> list[int]:
    names = [
        name for name in {**vars(config), **config.attribute_map} if _PLACEHOLDER.match(name)
    ]  # by any of its names
    values = [getattr(config, name, None) for name in names]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value >= 0]
