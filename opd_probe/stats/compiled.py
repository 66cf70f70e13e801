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
from opd_probe.stats.exponential import exp_of_nonpositive
from opd_probe.stats.pair import reduce_in_tiles, reduce_pair

PAYS_FROM = {"cpu": 5e9, "cuda": 3e11}
"""Logits per model in a job from which compiling pays, by device. A compilation takes 10 to 30 s; it saves about 1 ms
of CPU time per state of 150,000 ids, and by arithmetic some 10 µs on a large GPU."""


def compiling_pays(states: int, width: int, device: torch.device) -> bool:
    """Whether a job of ``states`` states over ``width`` ids is long enough to compile for."""
    return states * width >= PAYS_FROM.get(device.type, float("inf"))


TILE = 32
"""States that a compiled pass on a CPU takes at a time: their logits lie in its caches between the two passes."""


def whole_tiles(states: int) -> int:
    """The largest number of states up to ``states`` that tiles cover without overlap."""
    return states // TILE * TILE or states


SHAPES = 256
"""Shapes that may be compiled in one process: torch gives up at 8 unless told otherwise, and a job of several
vocabularies, depths or temperatures has as many."""


@functools.cache
def _definition(device: str) -> Callable[..., Any]:
    """The compiled definition; one for the whole process, since another one would be traced and looked up anew."""
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    _allow_shapes()
    if device != "cpu":
        return torch.compile(reduce_pair, dynamic=False, fullgraph=True)
    # A product and a sum in one instruction, rounded once.
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    return torch.compile(_reduce_on_cpu, dynamic=False, fullgraph=True, options=options)


def _allow_shapes() -> None:
    """Let torch compile :data:`SHAPES` of one definition."""
    from torch._dynamo import config

    for name in ("recompile_limit", "cache_size_limit"):  # as it is called from torch 2.7 on, and before
        if hasattr(config, name):
            setattr(config, name, max(getattr(config, name), SHAPES))
            return


def _reduce_on_cpu(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return reduce_pair(student, teacher, temperature, exp_of_nonpositive)


class CompiledReduction:
    """:func:`reduce_pair` lowered by torch.compile: C++ on a CPU, Triton on a GPU.

    Another number of states would be another shape, and cost a compilation of its own. On a CPU all states run
    compiled, in tiles of one size, of which the last overlaps the one before; on a GPU whole chunks do, and a shorter
    one runs as it stands. Where nothing can be compiled everything runs as it stands.

    Args:
        rows: states of a whole chunk.
        device: where the logits are; on another one than :data:`PAYS_FROM` names nothing is compiled.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = min(rows, TILE) if device.type == "cpu" else rows
        self._compiled: Callable[..., Any] | None = _definition(device.type) if device.type in PAYS_FROM else None

    @property
    def is_compiled(self) -> bool:
        """Whether compiled passes are used, as far as is known."""
        return self._compiled is not None

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Block maxima of both and float64 moments, as :func:`reduce_in_tiles`."""
        whole = len(student) == self.rows or student.device.type == "cpu"
        if self._compiled is None or not whole or not len(student):
            return reduce_in_tiles(student, teacher, temperature)
        try:
            return self._in_tiles(self._compiled, student, teacher, temperature)
        except Exception as error:  # no C++ compiler, no Triton, …: torch has no narrower root for it
            self._compiled = None
            line = (str(error).strip().splitlines() or [""])[0][:160]
            warnings.warn(
                f"torch.compile is not usable here ({type(error).__name__}: {line}); going on without it",
                OpdProbeWarning,
                stacklevel=2,
            )
            return reduce_in_tiles(student, teacher, temperature)

    def _in_tiles(
        self, compiled: Callable[..., Any], student: Tensor, teacher: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        states = len(student)
        if states < self.rows:
            student, teacher = (_repeated(logits, self.rows) for logits in (student, teacher))
        last = max(0, states - self.rows)
        starts = [*range(0, last, self.rows), last]
        parts = [compiled(student[s : s + self.rows], teacher[s : s + self.rows], temperature) for s in starts]
        ends = [*starts[1:], states]
        # Of each tile the rows up to the next one's.
        maxima = [
            torch.cat([part[side][: end - s] for part, s, end in zip(parts, starts, ends, strict=True)])
            for side in (0, 1)
        ]
        moments = torch.cat([part[2][:, : end - s] for part, s, end in zip(parts, starts, ends, strict=True)], dim=1)
        return maxima[0], maxima[1], moments


def _repeated(logits: Tensor, rows: int) -> Tensor:
    """Rows again and again up to a number of them, as far apart in memory as they were, which a compiled pass asks."""
    made = torch.empty_strided((rows, logits.shape[1]), logits.stride(), dtype=logits.dtype, device=logits.device)
    return made.copy_(logits[torch.arange(rows, device=logits.device) % len(logits)])
