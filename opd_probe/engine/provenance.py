"""What a trace says about the command that made it, and about how torch was told to multiply."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import torch

from opd_probe.plain import told


def command_line() -> list[str]:
    """The words that started this process, without logins that stand in addresses among them."""
    program, *words = sys.argv or [""]
    return [Path(program).name, *(told(word) for word in words)]


FP32_SETTINGS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""Operations whose ``fp32_precision`` torch.backends knows: what is in force, by whichever setting it was set."""


def float32_precision() -> dict[str, str | bool | None]:
    """How the process multiplies float32 numbers: torch's settings by name.

    The older ones (``torch.get_float32_matmul_precision()``, ``allow_tf32``) are None where torch refuses to say, which
    it does once the newer ones have been set to something that the older ones have no word for.
    """
    found: dict[str, str | bool | None] = {
        "float32_matmul_precision": _told(torch.get_float32_matmul_precision),
        "cuda.matmul.allow_tf32": _told(lambda: torch.backends.cuda.matmul.allow_tf32),
        "fp32_precision": torch.backends.fp32_precision,  # type: ignore[attr-defined]
    }
    for name in FP32_SETTINGS:
        found[f"{name}.fp32_precision"] = attrgetter(f"{name}.fp32_precision")(torch.backends)
    return found


def _told(ask: Callable[[], str | bool]) -> str | bool | None:
    try:
        return ask()
    except RuntimeError:
        return None


def reduced_matmul_precision() -> str | None:
    """Which products of float32 matrices are taken in less than float32, such as ``cuda tf32, cpu bf16``.

    None where all are taken in full, as torch does unless it is told otherwise.
    """
    found = float32_precision()
    places = {"cuda": found["cuda.matmul.fp32_precision"], "cpu": found["mkldnn.matmul.fp32_precision"]}
    return ", ".join(f"{place} {how}" for place, how in places.items() if how not in ("none", "ieee")) or None
