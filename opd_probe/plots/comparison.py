"""Two traces beside each other: the paired difference of every metric with its interval, grouped by unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

import opd_probe.plots.style as house
from opd_probe.curves.remarks import difference_remark
from opd_probe.digits import digits, true_minus
from opd_probe.errors import InputError
from opd_probe.plots.labels import METRICS, Label
from opd_probe.plots.layout import Entry, finish
from opd_probe.plots.series import shorten
from opd_probe.plots.tables import check_table, check_unique, numbers, single_k

UNITS = ("share", "probability", "nats", "tokens", "perplexity", "AUROC")
"""Panels from top to bottom; a unit not named here comes last."""

_ROW = 0.155  # inches of one metric
_HEAD = 2.6  # rows that a panel needs for its title, ticks and axis label
_COLUMNS = ("metric", "unit", "k", "difference", "difference_lo", "difference_hi")


def plot_comparison(table: pd.DataFrame, *, a: str = "A", b: str = "B") -> house.HouseFigure:
    """Differences b − a, one row per metric, one panel per unit, two columns of a paper wide.

    Args:
        table: what :func:`opd_probe.compare` gave, or several of them with a column ``pair`` (such as ``step 50``) in
            the order of the pairs: then the first and the last pair are drawn.
        a, b: names of the two sides, for the title.

    Returns:
        A mark is filled where the interval leaves 0 out. Metrics without a difference are named in the note.

    Raises:
        InputError: no rows, a column that is not there, several k, or two rows for one metric of one pair.
    """
    check_table("comparison", table, _COLUMNS)
    table = table if "pair" in table.columns else table.assign(pair="")
    check_unique("comparison", table, ["metric", "pair"])
    k = single_k("comparison", table)
    pairs = list(dict.fromkeys(table["pair"]))
    drawn = [pairs[0], pairs[-1]] if len(pairs) > 1 else pairs
    table = table[table["pair"].isin(drawn)]
    finite = table[np.isfinite(numbers(table, "difference"))]
    if finite.empty:
        raise InputError("comparison table: expected at least one finite difference, got none")
    missing = [name for name in dict.fromkeys(table["metric"]) if name not in set(finite["metric"])]
    found = list(dict.fromkeys(finite["unit"]))
    units = [unit for unit in UNITS if unit in found] + [unit for unit in found if unit not in UNITS]
    sizes = [finite.loc[finite["unit"] == unit, "metric"].nunique() for unit in units]
    colors = house.shades(house.COLORS[0], len(drawn))
    with house.house_style():
        figure = house.new_figure(2)
        spec = figure.add_gridspec(len(units), 1, height_ratios=[size + _HEAD for size in sizes])
        for row, unit in enumerate(units):
            _draw_unit(figure.add_subplot(spec[row, 0]), finite[finite["unit"] == unit], unit, drawn, colors, k)
        finish(
            figure,
            title="Paired differences B − A over the same prompts. A: {}. B: {}".format(*shorten([a, b], 36)),
            note=_note(table, missing, drawn),
            rows=1,
            row_height=_ROW * (sum(sizes) + _HEAD * len(units)),
            legend=[
                Entry(str(pair), color, "none", house.MARKERS[0])
                for pair, color in zip(drawn, colors, strict=True)
                if len(drawn) > 1
            ],
        )
    return figure


def _draw_unit(ax: Axes, table: pd.DataFrame, unit: str, pairs: Sequence[str], colors: Sequence[str], k: int) -> None:
    names = list(dict.fromkeys(table["metric"]))
    ax.vlines(0.0, -0.7, len(names) - 0.3, color=house.REFERENCE, linewidth=house.THIN, zorder=1).set_gid("zero")
    for index, (pair, color) in enumerate(zip(pairs, colors, strict=True)):
        rows = table[table["pair"] == pair]
        y = np.array([names.index(name) for name in rows["metric"]]) + 0.3 * (index - (len(pairs) - 1) / 2)
        value, lo, hi = (numbers(rows, f"difference{end}") for end in ("", "_lo", "_hi"))
        known = np.isfinite(lo) & np.isfinite(hi)
        bars = ax.hlines(y[known], lo[known], hi[known], color=color, linewidth=1.1, zorder=2)
        bars.set_gid(f"interval:{unit}:{pair}")
        clear = known & ((lo > 0) | (hi < 0))
        face = [color if one else "white" for one in clear]
        marks = ax.scatter(value, y, s=13, c=face, edgecolors=color, linewidths=0.9, zorder=3)
        marks.set_gid(f"difference:{unit}:{pair}")
    _dress(ax, names, unit, k)
    last = table[table["pair"] == pairs[-1]].set_index("metric")
    for place, name in enumerate(names):
        text = _value(last.loc[name]) if name in last.index else ""
        label = ax.text(1.015, place, text, transform=ax.get_yaxis_transform(), va="center", ha="left")
        label.set(fontsize=house.SMALL_SIZE - 0.5, color=house.MUTED, gid=f"value:{name}")


def _dress(ax: Axes, names: Sequence[str], unit: str, k: int) -> None:
    titles = [_title(name).format(k=k) for name in names]
    ax.set_ylim(len(names) - 0.3, -0.7)
    ax.yaxis.set_major_locator(FixedLocator(range(len(names))))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: titles[round(value)]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.04)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_title(unit if unit == "AUROC" else unit.capitalize(), loc="left")
    ax.set_xlabel(f"B − A ({unit})")


def _title(name: str) -> str:
    """The metric's own title; of a quantile of one, with the quantile behind it."""
    for suffix, words in (("_median", ", median"), ("_p90", ", 90th perc.")):
        if name.endswith(suffix):
            return METRICS.get(name.removesuffix(suffix), _plain(name.removesuffix(suffix))).title + words
    return METRICS.get(name, _plain(name)).title


def _plain(name: str) -> Label:
    return Label(name.replace("_", " ").capitalize(), "value")


def _value(row: pd.Series) -> str:
    """The difference with its interval, with a sign each."""
    lo, hi, value = (float(row[f"difference{end}"]) for end in ("_lo", "_hi", ""))
    known = math.isfinite(lo) and math.isfinite(hi)
    first, *ends = (_signed(text) for text in (digits(value, lo, hi) if known else digits(value)))
    return first + (f" [{', '.join(ends)}]" if ends else "")


def _signed(text: str) -> str:
    """A number with its sign, a true minus; 0 has none."""
    return text if text == "0" else true_minus(text if text.startswith("-") else f"+{text}")


def _note(table: pd.DataFrame, missing: Sequence[str], drawn: Sequence[str]) -> str:
    prompts = sorted({int(n) for n in numbers(table, "n_prompts") if np.isfinite(n)})
    count = f" ({prompts[0]}{f'-{prompts[-1]}' if len(prompts) > 1 else ''} prompts in both)" if prompts else ""
    note = f"Bars: 95 % interval of the difference, the same prompts on both sides{count}."
    note += " Filled: the interval leaves 0 out."
    note += f" In figures: {drawn[-1]}." if len(drawn) > 1 else ""
    for pair in drawn:
        rows = {row["metric"]: row for row in table[table["pair"] == pair].to_dict("records")}
        if difference_remark(rows) is not None:  # type: ignore[arg-type]
            where = f" at {pair}" if len(drawn) > 1 else ""
            note += f" Overlaps of one token, which count 0, decide over the overlap advantage{where}."
    return note + (f" Unknown or undefined on a side: {', '.join(missing)}." if missing else "")
