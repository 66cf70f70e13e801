"""Puts a figure together: title, panels, direct labels or a legend, and the note that explains the bands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

import opd_probe.plots.style as house
from opd_probe.plots.panels import scale_y
from opd_probe.plots.series import Series

_MARGIN = 0.07  # inches around everything
_MOST_DIRECT = 5  # series beyond which direct labels only make a crowd


class Named(Protocol):
    """What can be labelled: its line's gid ends in ``:label``."""

    @property
    def label(self) -> str: ...

    @property
    def style(self) -> house.SeriesStyle: ...


@dataclass(frozen=True)
class Entry:
    """One line of the legend."""

    label: str
    color: str = house.MUTED
    dash: house.Dash = house.SOLID
    marker: str = ""
    width: float = house.LINE_WIDTH
    filled: bool = True

    def handle(self) -> Line2D:
        face = self.color if self.filled else "white"
        return Line2D(
            [],
            [],
            color=self.color,
            linestyle=self.dash,
            marker=self.marker or "None",
            linewidth=self.width,
            markerfacecolor=face,
            solid_capstyle="butt",
        )


def series_entries(series: Sequence[Series], *, lines: bool = True) -> list[Entry]:
    """Legend entries of the series; without lines where each is a single point."""
    return [Entry(s.label, s.style.color, s.style.dash if lines else "none", s.style.marker) for s in series]


def grid(figure: house.HouseFigure, panels: int, columns: int) -> list[Axes]:
    """``panels`` axes in rows of ``columns``, left to right."""
    rows = -(-panels // columns)
    spec = figure.add_gridspec(rows, columns)
    return [figure.add_subplot(spec[index // columns, index % columns]) for index in range(panels)]


def panels_per_row(panels: int, columns: int) -> int:
    """Panels beside each other in a figure of one or two columns: up to three, and four as two by two."""
    return 1 if columns == 1 else (2 if panels == 4 else min(3, panels))


def finish(
    figure: house.HouseFigure,
    *,
    title: str,
    note: str,
    rows: int,
    row_height: float,
    legend: Sequence[Entry] = (),
    direct: Sequence[tuple[Axes, Sequence[Named]]] = (),
    fixed: Sequence[Entry] = (),
) -> None:
    """Size the figure, lay it out, and label the lines: directly in the first axes of ``direct`` where all the names
    fit (axes that hold most lines come first), else by ``legend``. ``fixed`` entries are in the legend either way."""
    for ax in figure.axes:
        scale_y(ax)
    _pad_titles(figure)
    figure.align_ylabels(_beside_names(figure.axes))
    body = rows * row_height
    most = max((len(named) for _, named in direct), default=0)
    for ax, named in direct:
        if not 1 < most == len(named) <= _MOST_DIRECT:
            continue
        low, high = ax.get_ylim()
        room = 17 / (72 * (row_height - 0.65))  # a name's height over the panel's, in points
        ax.set_ylim(low, high + room * (high - low))
        _frame(figure, title, note, body, fixed)
        figure.lay_out()
        if label_directly(ax, named):
            figure.stale = False  # names in the panels move none of them
            return
        ax.set_ylim(low, high)
        for old in [*figure.legends, *figure.texts]:
            old.remove()
    _frame(figure, title, note, body, [*legend, *fixed])


def _pad_titles(figure: house.HouseFigure) -> None:
    """Titles wrapped to their panel, and all of one row at one height, above its longest subtitle."""
    lines: dict[int, int] = {}
    for ax in figure.axes:
        below = [t.get_text().count("\n") + 1 for t in ax.texts if t.get_gid() == "subtitle"]
        lines[_row(ax)] = max([lines.get(_row(ax), 0), *below])
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        share = figure.get_size_inches()[0] / (spec.get_gridspec().ncols if spec else 1)
        whole = ax.get_title(loc="left").replace(" = ", "\u00a0=\u00a0")  # "k = 16" stays on one line
        title = textwrap.fill(whole, max(16, int(share * 12.5))).replace("\u00a0", " ")
        pad = 4.0 + 9.0 * lines[_row(ax)]
        ax.set_title(title, loc="left", pad=pad)
        for text in ax.texts:  # a short subtitle stays below its title; a column's head stands above it
            if isinstance(text, Annotation) and text.get_gid() == "subtitle":
                text.xyann = (0, pad - 1.0 - 9.0 * (text.get_text().count("\n") + 1))
            elif isinstance(text, Annotation) and text.get_gid() == "column-head":
                text.xyann = (0, pad + 14.0)


def _beside_names(axes: Sequence[Axes]) -> list[Axes]:
    """The axes of columns in which some y axis has a name. To align a column asks every row for the ticks of all rows,
    at each pass of the layout and each drawing."""
    named = {_column(ax) for ax in axes if ax.get_ylabel()}
    return [ax for ax in axes if ax.get_subplotspec() and _column(ax) in named]


def _row(ax: Axes) -> int:
    spec = ax.get_subplotspec()
    return int(spec.rowspan.start) if spec else 0


def _column(ax: Axes) -> int:
    spec = ax.get_subplotspec()
    return int(spec.colspan.start) if spec else 0


def _frame(figure: house.HouseFigure, title: str, note: str, body: float, entries: Sequence[Entry]) -> None:
    """Title above, legend and note below, ``body`` inches of panels between them."""
    width = figure.get_size_inches()[0]
    title_lines = _wrap(title, width, house.TITLE_SIZE * 1.06)
    note_lines = _wrap(note, width, house.SMALL_SIZE)
    legend = _legend(figure, entries, width) if entries else None
    head = 0.06 + 0.17 * len(title_lines)
    foot = _MARGIN + 0.125 * len(note_lines) + 0.04
    legend_height = legend.get_window_extent().height / figure.dpi + 0.1 if legend else 0.0
    height = head + body + foot + legend_height
    figure.set_size_inches(width, height)
    figure.suptitle(
        "\n".join(title_lines),
        x=_MARGIN / width,
        y=1 - 0.06 / height,
        ha="left",
        va="top",
        fontsize=house.TITLE_SIZE,
        fontweight="bold",
    ).set_in_layout(False)
    text = figure.text(_MARGIN / width, _MARGIN / height, "\n".join(note_lines), ha="left", va="bottom")
    text.set(fontsize=house.SMALL_SIZE, color=house.MUTED, gid="note", in_layout=False)
    if legend:
        legend.set_bbox_to_anchor((_MARGIN / width, foot / height), transform=figure.transFigure)
    below = (foot + legend_height) / height
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.0, below, 1.0, 1 - below - head / height), w_pad=0.05, h_pad=0.05, hspace=0.03, wspace=0.03)


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of at most ``width`` inches; 0.56 em is a little more than a glyph's mean width."""
    return textwrap.wrap(text, max(20, int((width - 2 * _MARGIN) * 72 / (0.56 * size))), break_on_hyphens=False) or [""]


def _legend(figure: house.HouseFigure, entries: Sequence[Entry], width: float) -> Legend:
    """The legend in as many columns as fit the figure's width."""
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(
            handles=[entry.handle() for entry in entries],
            labels=[entry.label for entry in entries],
            loc="lower left",
            ncols=columns,
            fontsize=house.LABEL_SIZE - 0.5,
        )
        legend.set_in_layout(False)
        if columns == 1 or legend.get_window_extent().width / figure.dpi <= width - 2 * _MARGIN:
            return legend
        legend.remove()
    raise AssertionError("a legend has at least one entry")


def label_directly(ax: Axes, series: Sequence[Named]) -> bool:
    """Write each name beside its line, in its colour: all of them where all fit, else none. The thin lines of single
    seeds are kept clear where that can be done."""
    own = [next((x for x in ax.lines if str(x.get_gid()).partition(":")[2] == s.label), None) for s in series]
    if any(line is None or len(line.get_xdata()) < 2 for line in own):  # type: ignore[arg-type]
        return False
    dense = [_dense(ax, line) for line in own if line is not None]
    edges = [edge for area in ax.collections if isinstance(area, PolyCollection) for edge in _edges(ax, area)]
    seeds = [_dense(ax, line) for line in ax.lines if ":seed " in str(line.get_gid())]
    return _place_all(ax, series, dense, [*edges, *seeds]) or (bool(seeds) and _place_all(ax, series, dense, edges))


def _place_all(
    ax: Axes,
    series: Sequence[Named],
    dense: Sequence[NDArray[np.float64]],
    edges: Sequence[NDArray[np.float64]],
) -> bool:
    """Write every name where it touches neither a line nor an edge, or none."""
    placed: list[Annotation] = []
    boxes: list[Bbox] = []
    for one, points in zip(series, dense, strict=True):
        found = _place(ax, one, points, [d for d in dense if d is not points], [*dense, *edges], boxes)
        if found is None:
            for label in placed:
                label.remove()
            return False
        placed.append(found)
        boxes.append(found.get_window_extent())
    return True


def _dense(ax: Axes, line: Line2D) -> NDArray[np.float64]:
    """Points along a line in pixels, one every pixel or so, for collision tests; [n, 2]."""
    return _densify(ax, np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)]))


def _edges(ax: Axes, area: PolyCollection) -> list[NDArray[np.float64]]:
    """The lower and the upper edge of a band, densely in pixels."""
    found = []
    for path in area.get_paths():
        points = np.asarray(path.vertices)
        half = int(np.argmax(points[:, 0]))
        found += [_densify(ax, points[: half + 1]), _densify(ax, points[half + 1 :][::-1])]
    return found


def _densify(ax: Axes, data: NDArray[np.float64]) -> NDArray[np.float64]:
    pixels = np.asarray(ax.transData.transform(data[np.isfinite(data).all(axis=1)]))
    if len(pixels) < 2:
        return pixels
    grid_x = np.linspace(pixels[0, 0], pixels[-1, 0], 400)
    return np.column_stack([grid_x, np.interp(grid_x, pixels[:, 0], pixels[:, 1])])


def _place(
    ax: Axes,
    one: Named,
    points: NDArray[np.float64],
    others: Sequence[NDArray[np.float64]],
    obstacles: Sequence[NDArray[np.float64]],
    taken: Sequence[Bbox],
) -> Annotation | None:
    """The first place along the line, from its right end, where the name touches no line, band edge, name or
    frame, and is nearer to its own line than to any other."""
    if len(points) < 2:
        return None
    frame = ax.get_window_extent()
    tries = [
        (x, side, gap) for side in (1, -1) for gap in (4, 8, 12) for x in np.linspace(points[-1, 0], points[0, 0], 12)
    ]
    for x, side, gap in tries:
        y = float(np.interp(x, points[:, 0], points[:, 1]))
        va = "bottom" if side > 0 else "top"
        label = ax.annotate(
            one.label,
            (x, y),
            xytext=(0, side * gap),
            xycoords="figure pixels",
            textcoords="offset points",
            ha="right",
            va=va,
        )
        label.set(color=house.mix(one.style.color, "black", 0.15), fontsize=house.LABEL_SIZE, in_layout=False)
        box = label.get_window_extent()
        inside = frame.x0 + 2 <= box.x0 and box.x1 <= frame.x1 and frame.y0 + 2 <= box.y0 and box.y1 <= frame.y1
        room = box.padded(2.0)
        hits = any(_crosses(room, line) for line in obstacles) or any(room.overlaps(other) for other in taken)
        clear = 1.5 * _distance(box, points) < min((_distance(box, line) for line in others), default=np.inf)
        if inside and clear and not hits:
            label.xy = tuple(ax.transData.inverted().transform((x, y)))
            label.xycoords = "data"
            label.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
            label.set_gid("direct-label")
            return label
        label.remove()
    return None


def _distance(box: Bbox, points: NDArray[np.float64]) -> float:
    """Pixels between a box and the part of a line above or below it; inf when there is none."""
    y = points[(points[:, 0] >= box.x0) & (points[:, 0] <= box.x1), 1]
    return float(np.maximum(np.maximum(box.y0 - y, y - box.y1), 0.0).min()) if len(y) else float("inf")


def _crosses(box: Bbox, points: NDArray[np.float64]) -> bool:
    x, y = points[:, 0], points[:, 1]
    return bool(((x >= box.x0) & (x <= box.x1) & (y >= box.y0) & (y <= box.y1)).any())
