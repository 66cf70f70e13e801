"""How one trace is made: what shapes its numbers, and what only shapes the work. Said here, and passed on as it is."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from opd_probe.errors import InputError
from opd_probe.types import LENGTH_RULES, LengthRule, StudentStates

TRACE_K = 64
"""K of a trace unless asked otherwise; more when the k of the metrics is larger."""

BATCH_TOKENS = 8192
"""Default token budget of a batch, padding included."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """The settings of one trace, from the command line down to the engine.

    Attributes:
        k, temperature, jsd: shape the numbers that are stored: depth of the top lists, that of both scored
            distributions, and whether the Jensen-Shannon divergence is among them.
        length_factors: shapes them where a model has several sets of rotary factors: whose length decides, see
            :data:`opd_probe.types.LENGTH_RULES`.
        dtype, tokenizer, allow_special_mismatch: shape them through the models: the type of the weights, the tokenizer
            in place of both models' own, and which ids the two share.
        batch_tokens, chunk, compiled, native: shape only the work. ``chunk`` is the number of states whose logits are
            held at a time; ``compiled`` whether the passes over the logits are compiled; ``native`` whether, on a CPU,
            the product of bf16 weights is: as ``compiled`` says where that is given. None: as fits the job.
        job_states: states of all traces that were asked for together, stored or not, from which it is decided whether
            compiling pays; None: those of this trace.
        student_states: where the student's states of its own responses come from, None: from sampling where that is
            exact, see :func:`opd_probe.jobs.own_states.are_exact`.
    """

    k: int = TRACE_K
    temperature: float = 1.0
    jsd: bool = False
    dtype: str | None = None
    tokenizer: Any = None
    allow_special_mismatch: bool = False
    batch_tokens: int = BATCH_TOKENS
    chunk: int | None = None
    compiled: bool | None = None
    length_factors: LengthRule = "prefix"
    student_states: StudentStates | None = None
    native: bool | None = None
    job_states: int | None = None

    def check(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            InputError: names the option.
        """
        if isinstance(self.k, bool) or not isinstance(self.k, Integral) or self.k < 1:
            raise InputError(f"k = {self.k!r}: expected a whole number of at least 1")
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens = {self.batch_tokens!r}: expected a whole number of at least 1")
        check_temperature(self.temperature)
        if self.length_factors not in LENGTH_RULES:
            raise InputError(f"length_factors = {self.length_factors!r}: expected one of {', '.join(LENGTH_RULES)}")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number.

    Raises:
        InputError: it is not.
    """
    if not (0 < temperature < float("inf")):
        raise InputError(f"temperature = {temperature!r}: expected a positive finite number")
