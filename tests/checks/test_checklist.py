"""The checklist as a whole: a healthy pair passes every line, and what stands in the way of one line is that line."""

from __future__ import annotations

import pytest

from opd_probe.checks import CHECKS
from opd_probe.checks.registry import register
from tests.checks.clinic import Clinic


def test_a_healthy_pair_passes_every_line(clinic: Clinic) -> None:
    found = clinic.findings()
    assert list(found) == list(CHECKS)
    assert {name: finding.figure for name, finding in found.items() if finding.status != "ok"} == {}
    assert all(finding.advice == "" for finding in found.values())
    assert all(finding.values for finding in found.values())


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="'eos' is registered twice"):
        register("eos", measures="", rule="", advice="", known_from="")(lambda _: None)  # type: ignore[arg-type,return-value]
