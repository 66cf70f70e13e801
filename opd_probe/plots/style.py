"""The house style: fonts, sizes, colours, dashes and markers, and a figure that carries them to the file.

Series are told apart three times over, by colour (Okabe-Ito, then Tol's muted set: safe for colour-blind
readers), by
marker and by dash pattern, so that they survive a grey printer. The plain dashed line is never given to a
series: it always means the second of two quantities in one panel (the teacher, or the forward KL).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

WIDTH = {1: 3.4, 2: 7.0}
"""Width of a figure in inches, for one and for two columns of a paper."""

INK = "#222222"
MUTED = "#666666"
REFERENCE = "#8C8C8C"

TITLE_SIZE = 9.0
PANEL_SIZE = 8.0
LABEL_SIZE = 7.5
SMALL_SIZE = 6.5
SCREEN_DPI = 110
"""Pixels per inch in a notebook, which keeps what it shows in its file."""

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
    "#444444",
    "#56B4E9",
    "#882255",
    "#999933",
    "#332288",
    "#CC6677",
    "#44AA99",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

Dash = tuple[float, tuple[float, ...]] | Literal["-", "none"]
SOLID: Dash = "-"
DASHED: Dash = (0.0, (3.6, 1.8))
DASHES: tuple[Dash, ...] = (
    SOLID,
    (0.0, (6.0, 1.3, 1.3, 1.3)),
    (0.0, (1.2, 1.2)),
    (0.0, (9.0, 1.8)),
    (0.0, (5.0, 1.2, 1.2, 1.2, 1.2, 1.2)),
)

LINE_WIDTH = 1.4
THIN = 0.8
SEED = 0.7
"""Width of the line of one seed, below the mean of all."""
MARKER_SIZE = 3.8
BAND_ALPHA = 0.16

_HOUSE: dict[str, Any] = {
    # Shipped with matplotlib: the same glyphs, hence the same layout, on every machine.
    "font.family": ["DejaVu Sans"],
    "font.size": LABEL_SIZE,
    "mathtext.fontset": "dejavusans",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType, embedded: text stays selectable and publishers accept it
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "opd-probe",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL_SIZE,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": PANEL_SIZE,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # where it stands anyway above an axis at the bottom, without looking for ticks at the top
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,  # no name of a run is ever markup
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL_SIZE + 0.5,
    "ytick.labelsize": SMALL_SIZE + 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": LINE_WIDTH,
    "lines.markersize": MARKER_SIZE,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": LABEL_SIZE - 0.5,
    "legend.handlelength": 2.9,
    "legend.columnspacing": 1.6,
    "legend.labelspacing": 0.35,
    "legend.borderpad": 0.0,
    "legend.borderaxespad": 0.0,
}

# The settings that a figure reads; those of backends and windows are the caller's.
_DRAWING = (
    *(
        "axes.",
        "errorbar.",
        "figure.",
        "font.",
        "grid.",
        "hatch.",
        "legend.",
        "lines.",
        "markers.",
        "mathtext.",
    ),
    *("patch.", "path.", "pdf.", "ps.", "savefig.", "svg.", "text.", "xaxis.", "xtick.", "yaxis.", "ytick."),
)


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults plus the house style, whatever the caller's own settings are; restored on
    exit."""
    defaults: dict[Any, Any] = {k: v for k, v in mpl.rcParamsDefault.items() if k.startswith(_DRAWING)}
    with mpl.rc_context(defaults | _HOUSE):
        yield


class HouseFigure(Figure):
    """A figure that is saved as it was drawn: settings read at save time (fonts in PDFs) are the house's."""

    _laid_out: float | None = None
    """The resolution that it was laid out for last."""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As :meth:`matplotlib.figure.Figure.savefig`, under the house style."""
        with house_style():
            super().savefig(fname, **kwargs)

    def lay_out(self, dpi: float | None = None) -> None:
        """Place the panels, once for as long as nothing changes, for text of as many pixels per inch (default: 200)."""
        engine = self.get_layout_engine()
        dpi = mpl.rcParams["savefig.dpi"] if dpi is None else dpi
        if engine is None or (self._laid_out == dpi and not self.stale):
            return
        with _resolution(self, dpi):
            engine.execute(self)
        self._laid_out, self.stale = dpi, False

    def _repr_png_(self) -> bytes:
        """Shown by notebooks without pyplot, as large as a screen needs."""
        return render(self, "png", dpi=SCREEN_DPI)


def new_figure(columns: int = 2) -> HouseFigure:
    """An empty figure of one or two columns' width; call inside :func:`house_style`. ``finish`` sets the
    height."""
    figure = HouseFigure(figsize=(WIDTH[columns], 3.0), layout="constrained")
    FigureCanvasAgg(figure)  # keeps what measures text; a bare canvas makes room for a whole picture at each question
    return figure


Format = Literal["png", "pdf", "svg"]


def render(figure: Figure, format: Format = "png", *, about: str = "", dpi: int | None = None) -> bytes:
    """The bytes of ``figure`` as a file of that format, see :func:`render_all`."""
    return render_all(figure, [format], about=about, dpi=dpi)[0]


def render_all(figure: Figure, formats: Sequence[Format], *, about: str = "", dpi: int | None = None) -> list[bytes]:
    """The bytes of ``figure`` as a file of each format; the same figure gives the same bytes (no dates inside).

    It is laid out once, as the PNG needs it, and drawn once for each file.

    Args:
        about: a description that the files carry in their metadata.
        dpi: pixels per inch of a PNG (default: 200).
    """
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": None, "Description": about or None},
        "pdf": {"CreationDate": None, "Subject": about or None},
        "svg": {"Date": None, "Description": about or None},
    }
    files = []
    with house_style(), _lean_fonts():
        dots = float(dpi or mpl.rcParams["savefig.dpi"])
        with _laid_out(figure, dots):
            for format in formats:
                target = BytesIO()
                figure.savefig(target, format=format, metadata=metadata[format], dpi=dots)
                files.append(target.getvalue())
    return files


@contextmanager
def _laid_out(figure: Figure, dpi: float) -> Iterator[None]:
    """The figure's layout, made once; within the block nothing makes it anew, as each saving would twice."""
    engine = figure.get_layout_engine()
    if isinstance(figure, HouseFigure):
        figure.lay_out(dpi)
    elif engine is not None:
        with _resolution(figure, dpi):
            engine.execute(figure)
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


@contextmanager
def _resolution(figure: Figure, dpi: float) -> Iterator[None]:
    """The figure at another resolution."""
    usual = figure.dpi
    figure.dpi = dpi
    try:
        yield
    finally:
        figure.dpi = usual


@contextmanager
def _lean_fonts() -> Iterator[None]:
    """Fonts go into PDFs without the tables by which text is laid out: it has been, no viewer reads them there, and to
    cut them down takes two thirds of the time that a font takes."""
    from fontTools.subset import Options

    usual = getattr(Options, "_drop_tables_default", None)  # matplotlib leaves no choice, and this has no public name
    if usual is None:
        yield
        return
    Options._drop_tables_default = [*usual, "GDEF", "GPOS", "GSUB", "MATH", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = usual


def mix(color: str, other: str, share: float) -> str:
    """``color`` with ``share`` (0 … 1) of ``other`` mixed in, as hex."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(color), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def shades(color: str, count: int) -> list[str]:
    """``count`` shades of one hue, light (early) to dark (late); one shade is the colour itself."""
    if count == 1:
        return [color]
    ends = (mix(color, "white", 0.6), mix(color, "black", 0.35))
    return [mix(ends[0], ends[1], index / (count - 1)) for index in range(count)]


@dataclass(frozen=True)
class SeriesStyle:
    """How one (run, teacher) is drawn, in every panel of a figure."""

    color: str
    marker: str
    dash: Dash


def series_style(series_index: int, run_index: int) -> SeriesStyle:
    """Colour by run, marker and dash by series; the pair (marker, dash) repeats only after 60 series."""
    return SeriesStyle(
        COLORS[run_index % len(COLORS)],
        MARKERS[series_index % len(MARKERS)],
        DASHES[series_index % len(DASHES)],
    )
