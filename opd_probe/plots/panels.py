"""The pieces of a panel: a curve with its band, the marks of infinite values, titles and references."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, ScalarFormatter

import opd_probe.plots.style as house
from opd_probe.plots.labels import Panel
from opd_probe.plots.tables import Floats, numbers

_CROWDED = 12  # points of a line above which only some carry a marker
_BAND_STEPS = 3  # curves of one colour family above which only the first and last keep their bands


@dataclass(frozen=True)
class Curve:
    """One line (or one point) of a panel. ``y`` may hold NaN (a gap) and ±inf (marked at the panel's
    edge)."""

    key: str
    x: Floats
    y: Floats
    lo: Floats
    hi: Floats
    color: str
    marker: str
    dash: house.Dash = house.SOLID
    filled: bool = True
    width: float = house.LINE_WIDTH
    band: bool = True
    order: int = 0
    second: bool = False

    @property
    def point(self) -> bool:
        """Whether this is a single point, drawn with an error bar."""
        return len(self.x) == 1


def draw_curve(ax: Axes, curve: Curve, alpha: float = house.BAND_ALPHA) -> None:
    """Add the line with its band, or the point with its error bar. NaN intervals draw nothing."""
    y = np.where(np.isfinite(curve.y), curve.y, np.nan)
    bounded = np.isfinite(curve.lo) & np.isfinite(curve.hi) & np.isfinite(y)
    lo, hi = np.where(bounded, curve.lo, np.nan), np.where(bounded, curve.hi, np.nan)
    if bounded.any() and curve.point:
        bar = ax.vlines(curve.x, lo, hi, color=curve.color, linewidth=0.9, zorder=2)
        bar.set_gid(f"interval:{curve.key}")
    elif bounded.any() and curve.band:
        area = ax.fill_between(curve.x, lo, hi, color=curve.color, alpha=alpha, linewidth=0, zorder=1.5)
        area.set_gid(f"interval:{curve.key}")
    (line,) = ax.plot(
        curve.x,
        y,
        color=curve.color,
        linestyle="none" if curve.point else curve.dash,
        linewidth=curve.width,
        marker=curve.marker,
        markevery=_markevery(y, curve.order),
        markerfacecolor=curve.color if curve.filled else "white",
        markeredgecolor=curve.color,
        markeredgewidth=0.9,
        zorder=2.5,
    )
    line.set_gid(curve.key)


def _markevery(y: Floats, order: int) -> tuple[int, int] | None:
    """Few, staggered markers on long lines; all of them where a gap might leave a point without its line."""
    if len(y) <= _CROWDED or np.isnan(y).any():
        return None
    every = math.ceil(len(y) / 7)
    return (order * 2) % every, every


def draw_panel(ax: Axes, curves: Sequence[Curve], *, where: str, names: Callable[[float], str]) -> str:
    """Draw all curves; returns the remark on infinite values ("" without any).

    ``where`` and ``names`` word that remark: "∞ at step 20" with ``where="step"`` and ``names(20.0) ==
    "20"``.
    """
    # Fainter bands in a crowd, or their sum hides the lines.
    alpha = house.BAND_ALPHA * min(1.0, 8 / max(1, sum(curve.band for curve in curves)))
    for curve in _dodged(curves):
        draw_curve(ax, curve, alpha)
    remarks = []
    for sign, height, marker in ((1, 0.965, "^"), (-1, 0.035, "v")):
        hit: set[float] = set()
        for curve in curves:
            at = curve.x[np.isposinf(sign * curve.y)]
            hit.update(float(x) for x in at)
            if len(at):
                (mark,) = ax.plot(
                    at,
                    np.full(len(at), height),
                    marker=marker,
                    linestyle="none",
                    markersize=5,
                    color=curve.color,
                    transform=ax.get_xaxis_transform(),
                    zorder=4,
                )
                mark.set_gid(f"infinite:{curve.key}")
        if hit:
            listed = [names(x) for x in sorted(hit)]
            more = ", …" if len(listed) > 3 else ""
            plural = "s" if len(listed) > 1 else ""
            remarks.append(f"{'∞' if sign > 0 else '−∞'} at {where}{plural} {', '.join(listed[:3])}{more}")
    return " · ".join(remarks)


def _dodged(curves: Sequence[Curve]) -> list[Curve]:
    """Single points at one x, set side by side so that their error bars can be told apart: series in their
    order, the two metrics of one series close together, and a series at the same place in every panel."""
    spread = np.concatenate([curve.x for curve in curves]) if curves else np.zeros(1)
    extent = float(spread.max() - spread.min())
    orders: dict[float, list[int]] = {}
    for curve in curves:
        if curve.point:
            orders.setdefault(float(curve.x[0]), []).append(curve.order)
    out = []
    for curve in curves:
        if curve.point:
            there = sorted(set(orders[float(curve.x[0])]))
            gap = min(0.15, 0.8 / len(there)) if extent == 0 else extent * min(0.02, 0.08 / len(there))
            shift = gap * (there.index(curve.order) - (len(there) - 1) / 2)
            if any(other.second for other in curves):
                shift += gap * (0.17 if curve.second else -0.17)
            curve = replace(curve, x=curve.x + shift)
        out.append(curve)
    return out


def why_missing(table: pd.DataFrame, metrics: Iterable[str]) -> str:
    """Why a metric has no finite value to draw; "" when it has one."""
    listed = list(metrics)
    values = np.concatenate([numbers(table, metric) for metric in listed])
    if np.isfinite(values).any():
        return ""
    if np.isinf(values).any():
        return "infinite at every point"
    counts = np.concatenate([numbers(table, f"{metric}_n") for metric in listed])
    if np.isfinite(counts).any() and not np.nan_to_num(counts).any():
        return "defined on no state"
    return "not measured in these traces"


def not_available(ax: Axes, why: str) -> None:
    """An empty panel that says why, in place of an empty frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("")
    ax.set_ylabel("")
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color("#DDDDDD")
    note = ax.text(0.5, 0.5, f"not available:\n{why}", transform=ax.transAxes, ha="center", va="center")
    note.set(color=house.MUTED, fontsize=house.LABEL_SIZE, gid="not-available")


def title_panel(ax: Axes, panel: Panel, k: int, remark: str = "", *, lines: bool = True) -> None:
    """Panel title (left), its unit on the y axis, and the small grey line below the title if there is any."""
    ax.set_title(panel.title.format(k=k), loc="left")
    ax.set_ylabel(panel.unit)
    subtitle(ax, "\n".join(part for part in (panel.subtitle(lines), remark) if part))


def subtitle(ax: Axes, text: str) -> None:
    """The small grey line between title and frame; :func:`layout.finish` makes room for it."""
    if text:
        note = ax.annotate(
            text,
            (0, 1),
            xytext=(0, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="left",
            va="bottom",
        )
        note.set(color=house.MUTED, fontsize=house.SMALL_SIZE, gid="subtitle")


def dress_metric(ax: Axes, metric: str) -> None:
    """The reference that a metric is read against: zero for what ought to vanish, 97-99 % for the overlap
    masses."""
    if metric.endswith("_overlap_mass"):
        band = ax.axhspan(0.97, 0.99, color=house.REFERENCE, alpha=0.18, linewidth=0, zorder=0.5)
        band.set_gid("reference")
    elif metric in {"overlap_advantage", "sampled_reward", "extreme_advantage_gap", "gain"}:
        ax.axhline(0.0, color=house.REFERENCE, linewidth=house.THIN, zorder=1, gid="reference")
    elif metric in {"entropy_gap", "accuracy", "reverse_kl"}:
        ax.set_ylim(bottom=0.0)


def scale_y(ax: Axes) -> None:
    """Plain numbers on the y axis; very small (or large) ones as multiples of a power of ten named with the unit.
    Ticks that were placed by hand stay."""
    if ax.get_yscale() != "linear" or not ax.lines or isinstance(ax.yaxis.get_major_locator(), FixedLocator):
        return
    largest = max(abs(limit) for limit in ax.get_ylim())
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if -3 < exponent < 5:
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return
    power = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] if d.isdigit() else "⁻" for d in str(exponent))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 10.0**exponent:.4g}".replace("-", "−")))
    ax.set_ylabel(f"10{power} {ax.get_ylabel()}")


def keep_bands(index: int, count: int) -> bool:
    """Whether the ``index``-th of ``count`` shaded curves keeps its band: all of a few, else the first and
    last."""
    return count <= _BAND_STEPS or index in (0, count - 1)
