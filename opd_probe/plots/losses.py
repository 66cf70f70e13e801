"""Which loss would see what: mass, value, length and direction of the gradient on every support, by k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import opd_probe.plots.style as house
from opd_probe.digits import digits
from opd_probe.plots.alignment import step_name
from opd_probe.plots.layout import Entry, finish, grid
from opd_probe.plots.panels import Curve, draw_panel, not_available, subtitle
from opd_probe.plots.tables import check_table, check_unique, interval_note, metric_columns, numbers, states_phrase

SUPPORTS = {
    "student": "student's top k",
    "teacher": "teacher's top k",
    "overlap": "overlap",
    "non_overlap": "symmetric difference",
    "union": "union",
}
_FORMS = ("renormalised", "plain")
_REFERENCES = {"full": ("full vocabulary", house.SOLID), "sampled": ("one sampled token", (0.0, (1.2, 1.2)))}
_PANELS = (
    ("student_mass", "Mass on the support", "probability", ("student_mass", "teacher_mass")),
    ("batch_cosine", "Direction: cosine with the full gradient", "cosine", None),
    ("gradient_norm", "Length of the gradient", "per state, of logits", None),
    ("loss", "Loss", "nats", None),
)


def plot_losses(table: pd.DataFrame, *, columns: int = 2) -> house.HouseFigure:
    """Four panels over k, a colour for each support, with the full vocabulary and the sampled token as grey lines.

    Args:
        table: what :func:`opd_probe.losses` gave, of one trace; rows without a clamp are drawn, and of the forms
            ``renormalised`` and ``plain``.
        columns: width of the figure, 1 or 2 columns of a paper.

    Raises:
        InputError: no rows, a column that is not there, or two rows for one point.
    """
    keys = ["support", "k", "form", "clamp"]
    metrics = [name for name, *_ in _PANELS]
    check_table("losses", table, [*keys, *metrics, "teacher_mass"])
    check_unique("losses", table, keys)
    rows = table[table["clamp"] == "none"]
    rows = table if rows.empty else rows
    drawn = rows[rows["form"].isin(_FORMS)]
    with house.house_style():
        figure = house.new_figure(columns)
        for ax, (metric, title, unit, pair) in zip(grid(figure, 4, 2 if columns == 2 else 1), _PANELS, strict=True):
            ax.set_title(title, loc="left")
            _draw(ax, drawn, rows, metric, pair)
            if ax.lines:
                ax.set_ylabel(unit)
        finish(
            figure,
            title=f"What each loss would see{_of(table)} at {states_phrase(table)}",
            note=f"Gradients with respect to the student's logits; the cosine is that of all states' gradients as one "
            f"vector. {interval_note(table, metrics)}{_bounds_note(drawn)}{_variance_note(rows)}",
            rows=2 if columns == 2 else 4,
            row_height=2.0,
            fixed=[*_entries(drawn), *_reference_entries(rows)],
        )
    return figure


def _of(table: pd.DataFrame) -> str:
    """Of which trace, where the table says so."""
    if not {"run", "teacher", "step"} <= set(table.columns):
        return ""
    row = table.iloc[0]
    return f", {row['run']} and {row['teacher']}, {step_name(float('nan') if pd.isna(row['step']) else row['step'])},"


def _style(support: str) -> house.SeriesStyle:
    index = list(SUPPORTS).index(support)
    return house.series_style(index, index)


def _entries(rows: pd.DataFrame) -> list[Entry]:
    there = [support for support in SUPPORTS if (rows["support"] == support).any()]
    return [Entry(SUPPORTS[one], _style(one).color, house.SOLID, _style(one).marker) for one in there]


def _reference_entries(rows: pd.DataFrame) -> list[Entry]:
    there = [name for name in _REFERENCES if (rows["support"] == name).any()]
    return [Entry(_REFERENCES[name][0], house.REFERENCE, _REFERENCES[name][1]) for name in there]


def _draw(ax: Axes, drawn: pd.DataFrame, rows: pd.DataFrame, metric: str, pair: Sequence[str] | None) -> None:
    curves = []
    for order, support in enumerate(SUPPORTS):
        for second in (False, True):
            name = pair[second] if pair else metric
            chosen = drawn[(drawn["support"] == support) & (drawn["form"] == _FORMS[second and pair is None])]
            if not chosen.empty:
                curves.append(_curve(chosen.sort_values("k"), name, support, order, second))
    references = {} if pair else {name: _reference(rows, name, metric) for name in _REFERENCES}
    if not any(np.isfinite(curve.y).any() for curve in curves):
        not_available(ax, "not known from this trace")
        return
    remark = draw_panel(ax, curves, where="k", names=lambda k: f"{k:g}")
    for name, value in references.items():
        if np.isfinite(value):
            line = ax.axhline(value, color=house.REFERENCE, linestyle=_REFERENCES[name][1], linewidth=1.0, zorder=1.2)
            line.set_gid(f"{metric}:{name}")
    roles = "solid: student, dashed: teacher" if pair else "solid: renormalised, dashed: plain"
    subtitle(ax, "\n".join(part for part in (roles, remark) if part))
    _dress(ax, curves)


def _curve(rows: pd.DataFrame, metric: str, support: str, order: int, second: bool) -> Curve:
    style = _style(support)
    value, lo, hi = metric_columns(rows, metric)
    least, most = (numbers(rows, f"{metric}_{end}") for end in ("least", "most"))
    open_ = np.isnan(value) & np.isfinite(least) & np.isfinite(most)
    return Curve(
        f"{metric}:{'plain' if second else 'renormalised'}:{support}",
        numbers(rows, "k"),
        np.where(open_, (least + most) / 2, value),
        np.where(open_, least, lo),
        np.where(open_, most, hi),
        style.color,
        style.marker,
        house.DASHED if second else house.SOLID,
        filled=not second,
        width=1.0 if second else house.LINE_WIDTH,
        order=order,
        second=second,
    )


def _reference(rows: pd.DataFrame, support: str, metric: str) -> float:
    found = numbers(rows[rows["support"] == support], metric)
    return float(found[0]) if len(found) else float("nan")


def _bounds_note(rows: pd.DataFrame) -> str:
    there = [metric for metric, *_ in _PANELS if f"{metric}_most" in rows]
    open_ = any((np.isnan(numbers(rows, m)) & np.isfinite(numbers(rows, f"{m}_most"))).any() for m in there)
    words = "A value that what lies outside the lists leaves open is drawn in the middle of its certain bounds"
    return f" {words}, and the band spans them." if open_ else ""


def _variance_note(rows: pd.DataFrame) -> str:
    without, with_baseline = (_reference(rows, "sampled", name) for name in ("variance", "variance_with_baseline"))
    if not np.isfinite(without) or not np.isfinite(with_baseline):
        return ""
    shown = f"{digits(without)[0]}, and {digits(with_baseline)[0]} with a baseline of −KL"
    return f" Variance of the gradient of one sampled token: {shown}."


def _dress(ax: Axes, curves: Sequence[Curve]) -> None:
    ks = sorted({float(k) for curve in curves for k in curve.x})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("k (tokens)")
