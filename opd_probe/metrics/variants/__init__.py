"""What other trainers log under the names of these metrics: their definitions, offered by name and never mixed in.

Each module states one peer's definitions and where they were read. Quantities bear the names under which the peer logs
them, so that a curve of such a trainer can be laid over ours.
"""

from __future__ import annotations

from opd_probe.errors import InputError
from opd_probe.metrics.variants.fireworks import fireworks
from opd_probe.metrics.variants.nemo_rl import nemo_rl
from opd_probe.metrics.variants.thunlp import SUPPORTS, WEIGHTS, thunlp
from opd_probe.metrics.variants.variant import CHUNK, Quantity, Variant
from opd_probe.metrics.variants.verl import verl

VARIANTS = ("verl", "fireworks", "thunlp", "nemo-rl")

__all__ = [
    "CHUNK",
    "SUPPORTS",
    "VARIANTS",
    "WEIGHTS",
    "Quantity",
    "Variant",
    "fireworks",
    "nemo_rl",
    "parse_variant",
    "thunlp",
    "verl",
]


def parse_variant(text: str) -> Variant:
    """A variant by name: ``verl[:LOG_PROB_MIN_CLAMP[:LOSS_MAX_CLAMP]]``, ``fireworks``, ``nemo-rl``,
    or ``thunlp[:SUPPORT[:WEIGHTS]]``.

    Raises:
        InputError: no such variant, clamps, support or weights.
    """
    name, *options = text.split(":")
    if name == "thunlp" and len(options) <= 2:
        return thunlp(*options)
    if name == "verl" and len(options) <= 2:
        try:
            clamps = [float(option) for option in options]
        except ValueError:
            raise InputError(
                f"variant {text!r}: expected verl[:LOG_PROB_MIN_CLAMP[:LOSS_MAX_CLAMP]], such as verl:-10:10"
            ) from None
        return verl(*clamps)
    if name == "fireworks" and not options:
        return fireworks()
    if name == "nemo-rl" and not options:
        return nemo_rl()
    raise InputError(
        f"variant {text!r}: expected verl, fireworks, nemo-rl, or thunlp[:SUPPORT[:WEIGHTS]] with a support of "
        f"{', '.join(SUPPORTS)} and weights of {', '.join(WEIGHTS)}"
    )
