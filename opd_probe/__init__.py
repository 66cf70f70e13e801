"""opd-probe: why is my on-policy distillation working, or not?

The names below are the public interface. They are imported on first use, so that ``import opd_probe`` loads
neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opd_probe.checks.registry import Finding
    from opd_probe.commands.doctor import doctor
    from opd_probe.curves import (
        compare,
        correlations,
        diagnose,
        groups,
        join_training_log,
        losses,
        mass_curve,
        position_curve,
        reward_by_depth,
        rollout_table,
        signal_by_depth,
        summarize,
        summarize_variant,
    )
    from opd_probe.engine.logits import trace_logits
    from opd_probe.errors import OpdProbeError, OpdProbeWarning
    from opd_probe.jobs.replay import replay, replay_teachers
    from opd_probe.metrics.recovery import gap_recovery
    from opd_probe.metrics.states import state_metrics
    from opd_probe.plots import (
        plot_alignment,
        plot_bars,
        plot_comparison,
        plot_continuation,
        plot_depth,
        plot_heatmap,
        plot_losses,
        plot_mass,
        plot_overlap,
        plot_overview,
        plot_reference,
        plot_rewards,
    )
    from opd_probe.runs.discovery import find_checkpoints
    from opd_probe.trace import Trace, read_trace
    from opd_probe.types import Checkpoint, Prompt, Rollout

try:
    __version__ = version("opd-probe")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+unknown"

_HOME = {
    "Checkpoint": "opd_probe.types",
    "Finding": "opd_probe.checks.registry",
    "OpdProbeError": "opd_probe.errors",
    "OpdProbeWarning": "opd_probe.errors",
    "Prompt": "opd_probe.types",
    "Rollout": "opd_probe.types",
    "Trace": "opd_probe.trace",
    "compare": "opd_probe.curves",
    "correlations": "opd_probe.curves",
    "diagnose": "opd_probe.curves",
    "doctor": "opd_probe.commands.doctor",
    "find_checkpoints": "opd_probe.runs.discovery",
    "gap_recovery": "opd_probe.metrics.recovery",
    "groups": "opd_probe.curves",
    "join_training_log": "opd_probe.curves",
    "losses": "opd_probe.curves",
    "mass_curve": "opd_probe.curves",
    "plot_alignment": "opd_probe.plots",
    "plot_comparison": "opd_probe.plots",
    "plot_depth": "opd_probe.plots",
    "plot_bars": "opd_probe.plots",
    "plot_continuation": "opd_probe.plots",
    "plot_heatmap": "opd_probe.plots",
    "plot_losses": "opd_probe.plots",
    "plot_mass": "opd_probe.plots",
    "plot_overlap": "opd_probe.plots",
    "plot_overview": "opd_probe.plots",
    "plot_reference": "opd_probe.plots",
    "plot_rewards": "opd_probe.plots",
    "position_curve": "opd_probe.curves",
    "read_trace": "opd_probe.trace",
    "replay": "opd_probe.jobs.replay",
    "replay_teachers": "opd_probe.jobs.replay",
    "reward_by_depth": "opd_probe.curves",
    "signal_by_depth": "opd_probe.curves",
    "rollout_table": "opd_probe.curves",
    "state_metrics": "opd_probe.metrics.states",
    "summarize": "opd_probe.curves",
    "summarize_variant": "opd_probe.curves",
    "trace_logits": "opd_probe.engine.logits",
}

__all__ = [
    "Checkpoint",
    "Finding",
    "OpdProbeError",
    "OpdProbeWarning",
    "Prompt",
    "Rollout",
    "Trace",
    "compare",
    "correlations",
    "diagnose",
    "doctor",
    "find_checkpoints",
    "gap_recovery",
    "groups",
    "join_training_log",
    "losses",
    "mass_curve",
    "plot_alignment",
    "plot_bars",
    "plot_comparison",
    "plot_continuation",
    "plot_depth",
    "plot_heatmap",
    "plot_losses",
    "plot_mass",
    "plot_overlap",
    "plot_overview",
    "plot_reference",
    "plot_rewards",
    "position_curve",
    "read_trace",
    "replay",
    "replay_teachers",
    "reward_by_depth",
    "rollout_table",
    "signal_by_depth",
    "state_metrics",
    "summarize",
    "summarize_variant",
    "trace_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'opd_probe' has no attribute {name!r}")

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
