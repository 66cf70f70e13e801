"""What a check is and what it finds.

A new check is one function under :func:`register`, its row in the docs, and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opd_probe.checks.evidence import Evidence, Skip
from opd_probe.errors import OpdProbeError

Status = Literal["ok", "warn", "fail", "skip"]
"""``skip``: the check could not be made, which is no ``ok``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of the evidence.

    Attributes:
        figure: what was found, in words with its numbers.
        values: the numbers, in JSON types (NaN where unknown).
        advice: what to do in this case; empty: what the check says.
    """

    status: Status
    figure: str
    values: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the checklist.

    Attributes:
        check: its name in :data:`CHECKS`.
        status: ``ok``, ``warn``, ``fail``, or ``skip`` when it could not be checked.
        figure: what was found, in words with its numbers; for ``skip`` the reason.
        advice: what to do; empty when the status is ``ok`` or ``skip``.
        values: the numbers by name, in JSON types (NaN where unknown).
    """

    check: str
    status: Status
    figure: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def grade(*, fail: bool, warn: bool) -> Status:
    """The status of a check whose limits are, or are not, exceeded."""
    return "fail" if fail else "warn" if warn else "ok"


CheckFunction = Callable[[Evidence], Verdict]


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        measures: what its figure is.
        rule: when it warns and when it fails, and why there.
        advice: what to do then.
        known_from: where practitioners met the fault.
    """

    name: str
    measures: str
    rule: str
    advice: str
    known_from: str
    function: CheckFunction


CHECKS: dict[str, Check] = {}
"""Every check by name, in the order of the checklist."""


def register(
    name: str, *, measures: str, rule: str, advice: str, known_from: str
) -> Callable[[CheckFunction], CheckFunction]:
    """Enter a function into :data:`CHECKS` under ``name``."""

    def enter(function: CheckFunction) -> CheckFunction:
        if name in CHECKS:
            raise ValueError(f"check {name!r} is registered twice")
        CHECKS[name] = Check(name, measures, rule, advice, known_from, function)
        return function

    return enter


def examine(evidence: Evidence) -> list[Finding]:
    """Every check on the evidence, in the order of the checklist. One that cannot be made is a line, too."""
    return [_finding(check, evidence) for check in CHECKS.values()]


def _finding(check: Check, evidence: Evidence) -> Finding:
    try:
        verdict = check.function(evidence)
    except (Skip, OpdProbeError) as reason:
        return Finding(check.name, "skip", str(reason))
    advice = (verdict.advice or check.advice) if verdict.status in ("warn", "fail") else ""
    return Finding(check.name, verdict.status, verdict.figure, advice, verdict.values)
