"""Figures: tidy tables in, :class:`matplotlib.figure.Figure` out.

One file per kind of figure, one public function in it. Nothing here computes a statistic but the mean over the
seeds of a table and the counts of a histogram, reads a trace, knows a path or touches pyplot's global state, so a
figure needs neither a display nor a backend. The exports are lazy (PEP 562): importing this package loads neither
matplotlib nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opd_probe.imports import uncollected

if TYPE_CHECKING:
    from opd_probe.plots.alignment import plot_alignment
    from opd_probe.plots.bars import plot_bars
    from opd_probe.plots.comparison import plot_comparison
    from opd_probe.plots.continuation import plot_continuation
    from opd_probe.plots.depth import plot_depth
    from opd_probe.plots.heatmap import plot_heatmap
    from opd_probe.plots.losses import plot_losses
    from opd_probe.plots.mass import plot_mass
    from opd_probe.plots.overlap import plot_overlap
    from opd_probe.plots.overview import plot_overview
    from opd_probe.plots.reference import plot_reference
    from opd_probe.plots.rewards import plot_rewards
    from opd_probe.plots.style import render, render_all

# A new kind of figure is one new file and one new line here.
_HOME = {
    "plot_alignment": "alignment",
    "plot_comparison": "comparison",
    "plot_depth": "depth",
    "plot_bars": "bars",
    "plot_continuation": "continuation",
    "plot_heatmap": "heatmap",
    "plot_overview": "overview",
    "plot_reference": "reference",
    "plot_rewards": "rewards",
    "plot_losses": "losses",
    "plot_mass": "mass",
    "plot_overlap": "overlap",
    "render": "style",
    "render_all": "style",
}

__all__ = [
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
    "render",
    "render_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with uncollected():
        module = import_module(f"{__name__}.{_HOME[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
