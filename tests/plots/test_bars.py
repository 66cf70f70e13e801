"""Bars, by the data of their artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from opd_probe.errors import InputError
from opd_probe.plots import plot_bars

from .examples import bars_rows
from .looking import note, panel, untidy_texts


def bar(ax: Axes, key: str) -> Rectangle:
    (found,) = [patch for patch in ax.patches if patch.get_gid() == key]
    assert isinstance(found, Rectangle)
    return found


def test_a_bar_is_the_mean_and_each_seed_a_dot() -> None:
    table = bars_rows()
    figure = plot_bars(table, metrics=["accuracy", "gap_recovery"], columns=2)
    for title, metric in (("Accuracy", "accuracy"), ("Gap recovery", "gap_recovery")):
        ax = panel(figure, title)
        for (group, model), rows in table.groupby(["group", "model"]):
            assert bar(ax, f"{metric}:{group}:{model}").get_width() == pytest.approx(rows[metric].mean())
            (dots,) = [one for one in ax.lines if one.get_gid() == f"seeds:{metric}:{group}:{model}"]
            np.testing.assert_array_equal(dots.get_xdata(), rows[metric])
    assert note(figure) == "Bars: mean over 3 seeds; dots: the seeds."
    values = [t.get_text() for t in panel(figure, "Gap recovery").texts if t.get_gid() == "value"]
    assert values == ["−0.290", "0.710", "−0.090", "0.910"]


def test_names_groups_and_order() -> None:
    figure = plot_bars(bars_rows())
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["same pipeline", "further training"] * 2
    heads = [t for t in ax.texts if t.get_gid() == "group"]
    assert [t.get_text() for t in heads] == ["family A", "family B"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first bar is on top
    colors = [bar(ax, f"accuracy:{group}:same pipeline").get_facecolor() for group in ("family A", "family B")]
    assert colors[0] == colors[1]


def test_one_seed_has_its_interval() -> None:
    table = bars_rows((0,)).drop(columns=["group", "seed"]).iloc[:2]
    figure = plot_bars(table)
    (ax,) = figure.axes
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    ends = [one.get_segments()[0][:, 0] for one in lines]
    np.testing.assert_allclose(ends, table[["accuracy_lo", "accuracy_hi"]])
    assert note(figure).startswith("Lines: 95 % interval over prompts (64 prompts)")


def test_an_unmeasured_bar_says_so() -> None:
    table = bars_rows((0,))
    table.loc[1, "accuracy"] = np.nan
    (ax,) = plot_bars(table).axes
    assert [t.get_text().strip() for t in ax.texts if t.get_gid() == "value"] == [
        "0.10",
        "not measured",
        "0.20",
        "0.70",
    ]
    (empty,) = plot_bars(table.assign(accuracy=np.nan)).axes
    assert empty.texts[-1].get_text().startswith("not available")


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_over_text(columns: int) -> None:
    table = bars_rows().assign(model=lambda t: t.model + " of a teacher with a long name")
    assert untidy_texts(plot_bars(table, metrics=["accuracy", "gap_recovery"], columns=columns)) == []


def test_bad_tables() -> None:
    table = bars_rows()
    with pytest.raises(InputError, match="bars table: no column 'model'"):
        plot_bars(table.drop(columns="model"))
    with pytest.raises(InputError, match="expected metrics to be a list"):
        plot_bars(table, metrics="accuracy")
    with pytest.raises(InputError, match=r"one row per \(group, model, seed\), got two"):
        plot_bars(pd.concat([table, table.iloc[:1]]))
