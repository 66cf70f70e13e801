"""What holds for every figure: no global state, light imports, the same bytes twice, embedded fonts."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from io import BytesIO
from typing import Literal

import matplotlib as mpl
import pytest
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_agg import FigureCanvasAgg

from opd_probe import plots
from opd_probe.plots import plot_mass, plot_overlap, render, render_all
from opd_probe.plots.series import shorten
from opd_probe.plots.style import COLORS, DASHED, DASHES, MARKERS, house_style, mix, series_style, shades

from .examples import LONG_NAMES, lab_table, mass_table


def test_importing_the_package_is_light_and_drawing_needs_no_pyplot() -> None:
    code = (
        "import sys, opd_probe.plots as p; heavy = {'matplotlib', 'pandas', 'numpy', 'seaborn', 'torch'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "p.plot_overlap; p.plot_mass; p.plot_alignment;"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    assert set(plots.__all__) <= set(dir(plots))
    assert all(callable(getattr(plots, name)) for name in plots.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plot_nothing'"):
        _ = plots.plot_nothing


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_same_table_same_bytes_whatever_the_callers_style(form: Literal["png", "pdf", "svg"]) -> None:
    table = mass_table(("compatible",), (0,))
    first = render(plot_mass(table), form)
    with mpl.rc_context({"font.size": 20, "axes.grid": False, "lines.linewidth": 9, "savefig.dpi": 30}):
        before = dict(mpl.rcParams)
        second = render(plot_mass(table), form)
        assert dict(mpl.rcParams) == before
    assert first == second


def test_pdf_fonts_are_embedded_truetype() -> None:
    pdf = render(plot_mass(mass_table()), "pdf")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_a_figure_drawn_again_looks_the_same() -> None:
    figure = plot_overlap(lab_table())
    once = bytes(FigureCanvasAgg(figure).print_to_buffer()[0])
    assert bytes(FigureCanvasAgg(figure).print_to_buffer()[0]) == once
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_table_is_not_changed() -> None:
    table, before = lab_table(), lab_table()
    plot_overlap(table)
    assert table.equals(before)


def test_sixty_series_look_different_and_none_is_plainly_dashed() -> None:
    looks = {(one.marker, one.dash) for one in (series_style(index, 0) for index in range(60))}
    assert len(looks) == 60
    assert DASHED not in DASHES
    assert len(set(COLORS)) == len(set(MARKERS)) == 12


def test_shades_run_from_light_to_dark() -> None:
    assert shades("#0072B2", 1) == ["#0072B2"]
    assert len(set(shades("#0072B2", 5))) == 5
    assert mix("#000000", "#ffffff", 0.5) == "#808080"


def test_names_are_shortened_where_they_stay_distinct() -> None:
    assert shorten(["a", "b"]) == ["a", "b"]
    assert shorten(LONG_NAMES)[0] == "…7b-instruct-lr1e-6-seed0"
    assert len(shorten(["x" * 100])[0]) == 46
    alike = ["x" * 40 + str(n) + "y" * 40 for n in range(2)]
    assert shorten(alike) == alike
    assert shorten([]) == []
    prompts = [f"a-long-run ← a-long-teacher{prompt}" for prompt in ("", " (own)", " (own, context solution)")]
    assert shorten(prompts)[:2] == ["…a-long-teacher", "…a-long-teacher (own)"]


def test_house_style_is_left_behind() -> None:
    before = dict(mpl.rcParams)
    with house_style():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


def test_all_files_of_a_figure_are_what_each_is_alone() -> None:
    table = mass_table(("compatible",), (0,))
    both = render_all(plot_mass(table), ["pdf", "png"])
    assert both == [render(plot_mass(table), "pdf"), render(plot_mass(table), "png")]


def test_a_figure_that_was_changed_is_laid_out_again() -> None:
    figure = plot_overlap(lab_table())
    engine, before = figure.get_layout_engine(), figure.axes[0].get_position().x0
    render(figure)
    figure.axes[0].set_ylabel("three\nlines\nof text")
    render(figure)
    assert figure.axes[0].get_position().x0 > before
    assert figure.get_layout_engine() is engine


def test_fonts_in_a_pdf_hold_no_tables_of_layout_and_its_text_stays_text() -> None:
    pdf = render(plot_mass(mass_table()), "pdf")
    parts = re.split(rb"(?<!end)stream\r?\n", pdf)[1:]
    streams = [zlib.decompressobj().decompress(part) for part in parts if part.startswith(b"\x78")]
    fonts = [TTFont(BytesIO(stream)) for stream in streams if stream.startswith(b"\x00\x01\x00\x00")]
    assert len(fonts) == 2  # plain and bold
    for font in fonts:
        assert {"glyf", "head", "hhea", "hmtx", "loca", "maxp"} <= set(font.keys())
        assert not {"GDEF", "GPOS", "GSUB"} & set(font.keys())
    assert b"/ToUnicode" in pdf
