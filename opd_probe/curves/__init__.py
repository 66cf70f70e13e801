"""Curves: per-state metrics grouped by checkpoint, position or rank, with intervals that resample prompts."""

from opd_probe.curves.mass import mass_curve
from opd_probe.curves.position import position_curve
from opd_probe.curves.summary import summarize

__all__ = ["mass_curve", "position_curve", "summarize"]
