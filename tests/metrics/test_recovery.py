"""Gap recovery: the share, nothing to recover, and the wrong way."""

from __future__ import annotations

import math

import pytest

import opd_probe
from opd_probe.errors import OpdProbeWarning


def test_the_share_that_was_closed() -> None:
    assert opd_probe.gap_recovery(0.2, 0.5, 0.8) == pytest.approx(0.5)
    assert opd_probe.gap_recovery(0.2, 0.9, 0.8) == pytest.approx(7 / 6)
    assert opd_probe.gap_recovery(0.2, 0.2, 0.8) == 0.0


def test_nothing_to_recover_and_nothing_known_are_nan() -> None:
    assert math.isnan(opd_probe.gap_recovery(0.5, 0.7, 0.5))
    assert math.isnan(opd_probe.gap_recovery(0.5, 0.7, math.nan))
    assert math.isnan(opd_probe.gap_recovery(math.nan, 0.7, 0.8))


@pytest.mark.parametrize(("after", "teacher"), [(0.3, 0.8), (0.6, 0.4)])
def test_the_wrong_way_is_negative_and_said(after: float, teacher: float) -> None:
    with pytest.warns(OpdProbeWarning, match="gap recovery is negative"):
        assert opd_probe.gap_recovery(0.5, after, teacher) < 0
