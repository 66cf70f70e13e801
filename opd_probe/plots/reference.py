"""What quantising a model cost it: how far its distributions are from those of the model in full."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

import opd_probe.plots.style as house
from opd_probe.plots.layout import finish
from opd_probe.plots.series import shorten
from opd_probe.plots.tables import check_table, check_unique, interval_note, numbers

UNITS = {"nats": "Divergence", "share": "Agreement"}
"""Panels from top to bottom, with their titles."""

_ROW = 0.2  # inches of one quantity
_HEAD = 2.4  # rows that a panel needs for its title, ticks and axis label
_COLUMNS = ("quantity", "unit", "value", "value_lo", "value_hi")


def plot_reference(table: pd.DataFrame, *, model: str = "Model", reference: str = "Reference") -> house.HouseFigure:
    """Divergences of a model from its reference, and how far they agree, each with its interval.

    Args:
        table: one row per quantity: ``quantity`` in words, its ``unit`` (:data:`UNITS`), ``value``, ``value_lo``,
            ``value_hi`` and, where it is known, ``n_prompts``.
        model, reference: their names, for the title.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one quantity.
    """
    check_table("reference", table, _COLUMNS)
    check_unique("reference", table, ["quantity"])
    units = [unit for unit in UNITS if unit in set(table["unit"])]
    sizes = [int((table["unit"] == unit).sum()) for unit in units]
    with house.house_style():
        figure = house.new_figure(2)
        spec = figure.add_gridspec(len(units), 1, height_ratios=[size + _HEAD for size in sizes])
        for row, unit in enumerate(units):
            _draw_unit(figure.add_subplot(spec[row, 0]), table[table["unit"] == unit], unit)
        finish(
            figure,
            title="{} against {}, at the same states".format(*shorten([model, reference], 40)),
            note=interval_note(table, ["value"], "Lines"),
            rows=1,
            row_height=_ROW * (sum(sizes) + _HEAD * len(units)),
        )
    return figure


def _draw_unit(ax: Axes, table: pd.DataFrame, unit: str) -> None:
    names = list(table["quantity"])
    places = np.arange(len(names))
    value, lo, hi = (numbers(table, f"value{end}") for end in ("", "_lo", "_hi"))
    known = np.isfinite(lo) & np.isfinite(hi)
    lines = ax.hlines(places[known], lo[known], hi[known], color=house.COLORS[0], linewidth=1.1, zorder=2)
    lines.set_gid(f"interval:{unit}")
    ax.scatter(value, places, s=16, color=house.COLORS[0], zorder=3).set_gid(f"value:{unit}")
    ax.set_ylim(len(names) - 0.3, -0.7)
    ax.yaxis.set_major_locator(FixedLocator(places.tolist()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda place, _: names[round(place)]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    if unit == "nats":
        ax.set_xlim(left=min(0.0, float(np.nanmin(np.append(lo, 0.0)))))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_title(UNITS[unit], loc="left")
    ax.set_xlabel(unit)
    for place, one in zip(places, value, strict=True):
        text = ax.text(1.015, float(place), f"{one:.4g}", transform=ax.get_yaxis_transform(), va="center", ha="left")
        text.set(fontsize=house.SMALL_SIZE - 0.5, color=house.MUTED, gid=f"text:{names[place]}")
