"""What each loss would see, by k."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.errors import InputError
from opd_probe.plots import plot_losses
from tests.samples import grouped_trace, many_prompts

from .looking import band, legend_labels, line, note, panel, remarks, untidy_texts

DIRECTION = "Direction: cosine with the full gradient"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return opd_probe.losses(grouped_trace(many_prompts(24), k=16), [1, 4, 16]).assign(states="own", n_prompts=24)


def rows_of(table: pd.DataFrame, support: str, form: str) -> pd.DataFrame:
    return table[(table["support"] == support) & (table["form"] == form) & (table["clamp"] == "none")]


def test_lines_are_the_rows_of_a_support_and_grey_lines_the_references(table: pd.DataFrame) -> None:
    figure = plot_losses(table)
    rows = rows_of(table, "student", "plain")
    ax = panel(figure, "Loss")
    np.testing.assert_array_equal(line(ax, "loss:plain:student").get_xdata(), [1, 4, 16])
    np.testing.assert_allclose(line(ax, "loss:plain:student").get_ydata(), rows["loss"])
    full = table[table["support"] == "full"].iloc[0]
    assert line(ax, "loss:full").get_ydata()[0] == full["loss"]
    mass = panel(figure, "Mass on the support")
    renormalised = rows_of(table, "union", "renormalised")
    np.testing.assert_allclose(line(mass, "teacher_mass:plain:union").get_ydata(), renormalised["teacher_mass"])
    assert legend_labels(figure)[-2:] == ["full vocabulary", "one sampled token"]
    assert "student-visited states (on-policy)" in figure.get_suptitle()


def test_what_is_open_is_a_band_between_its_bounds(table: pd.DataFrame) -> None:
    figure = plot_losses(table)
    rows = rows_of(table, "student", "plain")
    assert rows["batch_cosine"].isna().any()
    x, low, high = band(panel(figure, DIRECTION), "batch_cosine:plain:student")
    open_ = rows["batch_cosine"].isna().to_numpy()
    np.testing.assert_allclose(low[open_], rows["batch_cosine_least"][open_])
    np.testing.assert_allclose(high[open_], rows["batch_cosine_most"][open_])
    assert list(x) == [1, 4, 16]
    assert "certain bounds" in note(figure)
    assert "solid: renormalised, dashed: plain" in remarks(panel(figure, DIRECTION))


def test_no_text_over_text(table: pd.DataFrame) -> None:
    assert untidy_texts(plot_losses(table.assign(run="mine", teacher="big", step=20))) == []
    assert untidy_texts(plot_losses(table[table["k"].isna() | (table["k"] == 4)], columns=1)) == []


def test_nothing_known_leaves_a_note_and_bad_tables_are_refused(table: pd.DataFrame) -> None:
    unknown = table.assign(**{name: np.nan for name in table if name.startswith("batch_cosine")})
    assert "not known" in panel(plot_losses(unknown), DIRECTION).texts[-1].get_text()
    with pytest.raises(InputError, match="losses table: no column 'clamp'"):
        plot_losses(table.drop(columns="clamp"))
    with pytest.raises(InputError, match="expected one row per"):
        plot_losses(pd.concat([table, table]))
