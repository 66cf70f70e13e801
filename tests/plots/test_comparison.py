"""Differences with intervals, grouped by unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection

import opd_probe
from opd_probe.errors import InputError
from opd_probe.plots import plot_comparison
from tests.samples import grouped_trace, many_prompts

from .looking import legend_labels, note, panel, untidy_texts


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    a, b = (grouped_trace(many_prompts(25, seed=seed), seed=seed, vocabulary=30, k=24) for seed in (1, 2))
    return opd_probe.compare(a, b, 5, resamples=200)


def marks(ax: Axes, key: str) -> PathCollection:
    (found,) = [one for one in ax.collections if one.get_gid() == f"difference:{key}"]
    assert isinstance(found, PathCollection)
    return found


def test_every_finite_difference_is_drawn_in_the_panel_of_its_unit(table: pd.DataFrame) -> None:
    figure = plot_comparison(table, a="first", b="second")
    finite = table[np.isfinite(table["difference"])]
    assert len(figure.axes) == finite["unit"].nunique()
    for unit, rows in finite.groupby("unit", sort=False):
        ax = panel(figure, unit if unit == "AUROC" else str(unit).capitalize())
        points = np.asarray(marks(ax, f"{unit}:").get_offsets())
        np.testing.assert_allclose(points[:, 0], rows["difference"])
        (bars,) = [one for one in ax.collections if one.get_gid() == f"interval:{unit}:"]
        assert isinstance(bars, LineCollection)
        ends = np.array([segment[:, 0] for segment in bars.get_segments()])
        known = np.isfinite(rows["difference_lo"])
        np.testing.assert_allclose(ends, rows.loc[known, ["difference_lo", "difference_hi"]])
        assert ax.get_xlabel() == f"B − A ({unit})"
    assert "A: first. B: second" in figure.get_suptitle().replace("\n", " ")
    missing = table[table["difference"].isna()]["metric"]
    assert "special_token_gap" in set(missing)
    assert "special_token_gap" in note(figure)
    assert "25 prompts in both" in note(figure)


def test_a_mark_is_filled_where_the_interval_leaves_nothing_out() -> None:
    rows = [("overlap_ratio", 0.2, 0.1, 0.3), ("accuracy", 0.1, -0.1, 0.3), ("truncation_rate", -0.2, -0.3, -0.1)]
    table = pd.DataFrame(rows, columns=["metric", "difference", "difference_lo", "difference_hi"])
    figure = plot_comparison(table.assign(unit="share", k=8))
    colors = marks(panel(figure, "Share"), "share:").get_facecolors()
    assert [tuple(color) == (1.0, 1.0, 1.0, 1.0) for color in colors] == [False, True, False]


def test_of_several_pairs_the_first_and_the_last(table: pd.DataFrame) -> None:
    parts = [table.assign(pair=f"step {step}") for step in (0, 50, 100)]
    figure = plot_comparison(pd.concat(parts, ignore_index=True))
    assert legend_labels(figure) == ["step 0", "step 100"]
    assert "In figures: step 100" in note(figure)


def test_no_text_over_text(table: pd.DataFrame) -> None:
    long = "a-run-with-a-very-long-name-that-goes-on-and-on at step 100"
    assert untidy_texts(plot_comparison(table, a=long, b=f"another-{long}")) == []


def test_bad_tables(table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no column 'difference_lo'"):
        plot_comparison(table.drop(columns="difference_lo"))
    with pytest.raises(InputError, match="at least one finite difference"):
        plot_comparison(table.assign(difference=np.nan))
    with pytest.raises(InputError, match="expected one row per"):
        plot_comparison(pd.concat([table, table]))
