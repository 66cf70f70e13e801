"""Heatmaps by position and step, by the data of their cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from opd_probe.errors import InputError
from opd_probe.plots import plot_heatmap
from opd_probe.plots.heatmap import cells

from .examples import position_table
from .looking import note, untidy_texts

TABLE = position_table(("compatible", "incompatible")).assign(
    n_states=1000, position_hi=lambda t: t.position_hi - 1
)  # bins of 50 tokens, both ends included


def mesh(figure: Figure, key: str) -> QuadMesh:
    (found,) = [c for ax in figure.axes for c in ax.collections if isinstance(c, QuadMesh) and c.get_gid() == key]
    return found


def values(one: QuadMesh) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(one.get_array(), dtype=float), np.nan)


def test_cells_are_the_tables_numbers() -> None:
    figure = plot_heatmap(TABLE)
    for run in ("compatible", "incompatible"):
        for metric in ("student_entropy", "teacher_entropy"):
            grid = TABLE[TABLE.run == run].pivot(index="position_lo", columns="step", values=metric)
            np.testing.assert_array_equal(values(mesh(figure, f"{metric}:{run}")), grid)
    one = mesh(figure, "student_entropy:compatible")
    corners = one.get_coordinates()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(corners[0, :, 0], [-25, 25, 75, 125])
    np.testing.assert_array_equal(corners[:, 0, 1], np.arange(0, 1001, 50))
    scales = {id(c.norm) for ax in figure.axes for c in ax.collections if str(c.get_gid()).count(":")}
    assert len(scales) == 1  # one scale for both models


def test_seeds_are_averaged_even_where_their_bins_differ() -> None:
    rows = pd.DataFrame(
        {"seed": [0, 0, 1], "step": 0, "position_lo": [0, 2, 0], "position_hi": [1, 3, 3], "n_states": 50,
         "student_entropy": [1.0, 2.0, 3.0]}
    )  # fmt: skip
    steps, edges, found = cells(rows, "student_entropy")
    assert list(steps) == [0]
    assert list(edges) == [0, 2, 4]
    assert found.tolist() == [[2.0], [2.5]]


def test_cells_of_few_states_are_blank_and_cut_off_at_the_end() -> None:
    table = TABLE[TABLE.run == "compatible"].copy()
    table.loc[(table.position_lo >= 800) | ((table.position_lo == 100) & (table.step == 50)), "n_states"] = 19
    figure = plot_heatmap(table)
    found = values(mesh(figure, "student_entropy:compatible"))
    assert np.isnan(found[2, 1])
    assert np.isnan(found).sum() == 1
    assert found.shape == (16, 3)
    assert figure.axes[0].get_ylim() == (0, 800)
    assert note(figure) == "Hatched: fewer than 20 states, not drawn."


def test_labels() -> None:
    figure = plot_heatmap(pd.concat([TABLE.assign(seed=0), TABLE.assign(seed=1)]))
    titled: list[Axes] = figure.axes[:4]
    assert [ax.get_title(loc="left") for ax in titled] == ["Student entropy", "Teacher entropy", "", ""]
    assert [ax.get_xlabel() for ax in titled] == ["", "", "training step", "training step"]
    assert "compatible" in titled[0].get_ylabel()
    assert "position (tokens)" in titled[0].get_ylabel()
    assert figure.axes[-1].get_ylabel() == "nats"
    assert note(figure).startswith("Means over 2 seeds.")
    assert "on-policy" in figure.get_suptitle()


def test_no_text_over_text() -> None:
    assert untidy_texts(plot_heatmap(TABLE)) == []
    assert untidy_texts(plot_heatmap(TABLE[TABLE.run == "compatible"], columns=1)) == []


def test_a_metric_that_is_not_there_and_bad_tables() -> None:
    figure = plot_heatmap(TABLE.assign(teacher_entropy=np.nan))
    assert [t.get_text() for t in figure.axes[1].texts] == ["not available:\nnot measured in these traces"]
    with pytest.raises(InputError, match="position table: no column 'position_lo'"):
        plot_heatmap(TABLE.drop(columns="position_lo"))
    with pytest.raises(InputError, match="expected rows with a known step, got none"):
        plot_heatmap(TABLE.assign(step=np.nan))
    with pytest.raises(InputError, match="got two for run = compatible"):
        plot_heatmap(pd.concat([TABLE, TABLE]))
    with pytest.raises(InputError, match="expected metrics to be a list"):
        plot_heatmap(TABLE, metrics="student_entropy")
