"""The gallery: every figure of the paper, and files that show what the tables hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from opd_probe.errors import MissingError
from opd_probe.lab.gallery import Data, draw_gallery, drawn_data, fingerprint, gallery, page, stored_fingerprint
from opd_probe.lab.gallery.drawing import FORMS
from opd_probe.plots import plot_alignment, plot_bars, plot_heatmap, plot_mass, plot_rewards
from opd_probe.results.kinds import KINDS
from tests.plots.examples import bars_rows, lab_table, mass_table, position_table, rollout_rows, seeds_table

ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "figures"
ENTRIES = {entry.name: entry for entry in gallery()}


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(FIGURES / "data")


@pytest.mark.parametrize("name", ENTRIES)
def test_the_files_show_what_the_tables_hold(name: str, data: Data) -> None:
    """Fails when a number under ``figures/data`` changed and the figure was not redrawn (``make figures``)."""
    files = [FIGURES / f"{name}.{form}" for form in FORMS]
    try:
        figure = ENTRIES[name].draw(data)
    except MissingError:
        assert not any(path.exists() for path in files), f"{name} is drawn, but its data are gone"
        return
    assert [stored_fingerprint(path) for path in files] == [fingerprint(figure)] * 2


def test_no_figure_lies_about_that_nobody_draws() -> None:
    found = {path.stem for form in FORMS for path in FIGURES.glob(f"*.{form}")}
    assert found <= set(ENTRIES)


def test_the_page_shows_the_figures() -> None:
    assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == page(FIGURES)


def test_every_figure_of_the_paper_is_there_and_says_what_to_look_for() -> None:
    shown = {number for entry in gallery() for number in entry.paper.split(", ")}
    assert shown == {str(number) for number in range(1, 24) if number != 11} | {"11a", "11b"}
    for entry in gallery():
        assert entry.kind in KINDS
        assert set(entry.paper.split(", ")) & set(KINDS[entry.kind].paper.split(", ")) or not KINDS[entry.kind].paper
        assert entry.title[0].isupper()
        assert len(entry.look_for.split()) >= 8


def write_tables(directory: Path) -> Path:
    """The curves of one experiment, enough for two of the gallery's figures."""
    directory.mkdir()
    names = {"compatible": "compatible teacher", "incompatible": "incompatible teacher"}
    curves = seeds_table().assign(experiment="success_failure").replace({"run": names})
    curves.to_parquet(directory / "curves.parquet")
    return directory


def test_what_the_tables_hold_is_drawn_and_the_rest_is_named(tmp_path: Path) -> None:
    tables = Data(write_tables(tmp_path / "data"))
    out = tmp_path / "figures"
    out.mkdir()
    (out / "fig02_compatibility.png").write_bytes(b"of data that are gone")
    missing = draw_gallery(tables, out)
    drawn = {path.stem for path in out.iterdir()}
    assert drawn == {"fig06_success_failure", "fig18_overlap_mass"}
    assert {line.partition(":")[0] for line in missing} == set(ENTRIES) - drawn
    assert "fig02_compatibility: " in missing[1]
    assert "curves.parquet: no row of experiment compatibility" in missing[1]
    marks = {stored_fingerprint(path) for path in out.glob("fig06*")}
    assert marks == {fingerprint(ENTRIES["fig06_success_failure"].draw(tables))}
    shown = page(out)
    assert shown.count("](../figures/") == 2
    assert 'metrics=["accuracy", "overlap_ratio", "overlap_advantage", "entropy_gap"]' in shown
    assert "_PAIR" not in shown


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    import typer

    from opd_probe.lab.gallery.__main__ import main

    app = typer.Typer()
    app.command()(main)
    words = ["--data", str(write_tables(tmp_path / "data")), "--out", str(tmp_path), "--docs", str(tmp_path / "g.md")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "not drawn: fig01_overview: " in done.output
    assert (tmp_path / "g.md").read_text().count("\n## ") == 2


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (plot_alignment, lab_table(), "entropy_gap"),
        (plot_alignment, lab_table(), "entropy_gap_lo"),
        (plot_alignment, seeds_table(), "accuracy"),
        (plot_bars, bars_rows(), "accuracy"),
        (plot_bars, bars_rows((0,)), "accuracy_hi"),
        (plot_heatmap, position_table().assign(position_hi=lambda t: t.position_hi - 1), "teacher_entropy"),
        (plot_rewards, rollout_rows(), "sequence_mean_reward"),
        (plot_mass, mass_table(), "student_overlap_mass"),
    ],
)
def test_a_fingerprint_changes_with_any_number_and_with_nothing_else(draw, table, column) -> None:  # type: ignore[no-untyped-def]
    before = fingerprint(draw(table))
    assert fingerprint(draw(table.copy())) == before
    changed = table.copy()
    changed.loc[changed.index[0], column] += 0.01
    assert fingerprint(draw(changed)) != before


def test_drawn_data_are_plain_and_do_not_depend_on_the_layout() -> None:
    wide, narrow = (drawn_data(plot_alignment(lab_table(), columns=columns)) for columns in (2, 1))
    assert json.loads(json.dumps(wide)) == json.loads(json.dumps(narrow))
    assert np.ndim(wide[0]) == 0


def test_data_names_what_it_lacks(tmp_path: Path) -> None:
    tables = Data(write_tables(tmp_path / "data"))
    assert set(tables.rows("curves", "success_failure", step=[0, 10])["step"]) == {0, 10}
    with pytest.raises(MissingError, match=r"models.parquet: no such table; make it with opd-probe lab run"):
        tables.rows("models", "compatibility")
    with pytest.raises(MissingError, match=r"no row of experiment success_failure, run nobody"):
        tables.rows("curves", "success_failure", run="nobody")
