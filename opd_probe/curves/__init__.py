"""Curves: per-state metrics grouped by checkpoint, position or rank, with intervals that resample prompts."""

from opd_probe.curves.by_rollout import rollout_table
from opd_probe.curves.correlations import correlations
from opd_probe.curves.depth import reward_by_depth, signal_by_depth
from opd_probe.curves.groups import groups
from opd_probe.curves.losses import losses
from opd_probe.curves.mass import mass_curve
from opd_probe.curves.paired import compare
from opd_probe.curves.position import position_curve
from opd_probe.curves.summary import summarize
from opd_probe.curves.training_log import join_training_log
from opd_probe.curves.variants import summarize_variant
from opd_probe.curves.whole import diagnose

__all__ = [
    "compare",
    "correlations",
    "diagnose",
    "groups",
    "join_training_log",
    "losses",
    "mass_curve",
    "position_curve",
    "reward_by_depth",
    "rollout_table",
    "signal_by_depth",
    "summarize",
    "summarize_variant",
]
