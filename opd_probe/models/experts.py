"""How many experts a model chooses among."""

from __future__ import annotations

import re
from typing import Any

_EXPERTS = re.compile(r"^(moe_)?(n|num)_(local_|routed_)?experts$")


def experts_of(config: Any) -> int:
    """The experts that a layer of a model with such a configuration chooses among for each token; 0: it is dense."""
    found = _stated(config.get_text_config().to_dict())
    return max(found, default=0)


def _stated(config: dict[str, Any]) -> list[int]:
    """Counts above 1, wherever the configuration states them; lists have one for each layer."""
    counts = []
    for name, value in config.items():
        if isinstance(value, dict):
            counts += _stated(value)
        elif _EXPERTS.match(str(name)):
            stated = value if isinstance(value, list) else [value]
            counts += [one for one in stated if isinstance(one, int) and one > 1]
    return counts
