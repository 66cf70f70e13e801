"""The passes over whole rows, compiled: worth it for long jobs only."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opd_probe.errors import OpdProbeWarning
from opd_probe.stats.pair import reduce_in_tiles, reduce_pair

PAYS_FROM = {"cpu": 5e9, "cuda": 3e11}
"""Logits per model in a job from which compiling pays, by device. A compilation takes 10 to 30 s; it saves about 1 ms
of CPU time per state of 150,000 ids, and by arithmetic some 10 µs on a large GPU."""


def compiling_pays(states: int, width: int, device: torch.device) -> bool:
    """Whether a job of ``states`` states over ``width`` ids is long enough to compile for."""
    return states * width >= PAYS_FROM.get(device.type, float("inf"))


@functools.cache
def _definition() -> Callable[..., Any]:
    """The compiled definition; one for the whole process, since another one would be traced and looked up anew."""
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    return torch.compile(reduce_pair, dynamic=False, fullgraph=True)


class CompiledReduction:
    """:func:`reduce_pair` lowered by torch.compile: C++ on a CPU, Triton on a GPU.

    Whole chunks run compiled; a shorter one runs as it stands, since another shape would cost a compilation of its own.
    Where nothing can be compiled everything runs as it stands.

    Args:
        rows: states of a whole chunk.
        device: where the logits are; on another one than :data:`PAYS_FROM` names nothing is compiled.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self._compiled: Callable[..., Any] | None = _definition() if device.type in PAYS_FROM else None

    @property
    def is_compiled(self) -> bool:
        """Whether whole chunks run compiled, as far as is known."""
        return self._compiled is not None

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Block maxima of both and float64 moments, as :func:`reduce_in_tiles`."""
        if self._compiled is None or len(student) != self.rows:
            return reduce_in_tiles(student, teacher, temperature)
        try:
            student_maxima, teacher_maxima, moments = self._compiled(student, teacher, temperature)
        except Exception as error:  # no C++ compiler, no Triton, …: torch has no narrower root for it
            self._compiled = None
            line = (str(error).strip().splitlines() or [""])[0][:160]
            warnings.warn(
                f"torch.compile is not usable here ({type(error).__name__}: {line}); going on without it",
                OpdProbeWarning,
                stacklevel=2,
            )
            return reduce_in_tiles(student, teacher, temperature)
        return student_maxima, teacher_maxima, moments
