"""Curves: per-state metrics grouped by checkpoint, position or rank, with intervals that resample prompts."""

from opd_probe.curves.by_rollout import rollout_table
from opd_probe.curves.mass import mass_curve
from opd_probe.curves.position import position_curve
from opd_probe.curves.summary import summarize
from opd_probe.curves.training_log import join_training_log

__all__ = ["join_training_log", "mass_curve", "position_curve", "rollout_table", "summarize"]
