"""The overview is its three panels."""

from __future__ import annotations

import numpy as np
import pytest

from opd_probe.errors import InputError
from opd_probe.plots import plot_overview

from .examples import bars_rows, crowd_table, lab_table, seeds_table
from .looking import line, note, untidy_texts


def test_three_panels() -> None:
    table = seeds_table()
    figure = plot_overview(bars_rows(), table, table[table.run == "compatible"], headings=("Gap", "Overlap", "Reverse"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a  Gap", "b  Overlap", "c  Reverse"]
    gap, overlap, accuracy = figure.axes
    assert len([p for p in gap.patches if str(p.get_gid()).startswith("gap_recovery")]) == 4
    means = table[table.run == "incompatible"].groupby("step").overlap_ratio.mean()
    np.testing.assert_allclose(line(overlap, "overlap_ratio:incompatible").get_ydata(), means)
    assert {str(one.get_gid()).split(":")[1] for one in accuracy.lines if ":" in str(one.get_gid())} == {"compatible"}
    assert {t.get_text() for t in overlap.texts if t.get_gid() == "direct-label"} == {"compatible", "incompatible"}
    assert note(figure).startswith("Dots and thin lines: seeds")
    assert untidy_texts(figure) == []


def test_names_that_do_not_fit_are_in_a_legend_of_their_panel() -> None:
    crowd = crowd_table().query("run.str.contains('lr1e-6')")
    figure = plot_overview(bars_rows((0,)), crowd, lab_table())
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 6
    assert note(figure).startswith("Lines on bars and bands")


def test_bad_tables() -> None:
    table = lab_table()
    with pytest.raises(InputError, match="bars table: no column 'gap_recovery'"):
        plot_overview(bars_rows().drop(columns="gap_recovery"), table, table)
    with pytest.raises(InputError, match="overlap table: no column 'accuracy'"):
        plot_overview(bars_rows(), table, table.drop(columns="accuracy"))
