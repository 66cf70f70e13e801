"""How the tests look at a figure: the lines, bands and texts that it holds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text


def panel(figure: Figure, title: str) -> Axes:
    """The axes whose title begins so."""
    (found,) = [ax for ax in figure.axes if ax.get_title(loc="left").replace("\n", " ").startswith(title)]
    return found


def line(ax: Axes, key: str) -> Line2D:
    """The one line drawn for ``metric:label``."""
    (found,) = [one for one in ax.lines if one.get_gid() == key]
    return found


def drawn(ax: Axes) -> list[Line2D]:
    """Lines of series: no reference lines, no marks of infinite values."""
    keys = [str(one.get_gid()) for one in ax.lines]
    pairs = zip(ax.lines, keys, strict=True)
    return [one for one, key in pairs if ":" in key and not key.startswith("infinite")]


def band(ax: Axes, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, lower and upper edge of the band drawn for ``metric:label``."""
    (area,) = [c for c in ax.collections if isinstance(c, PolyCollection) and c.get_gid() == f"interval:{key}"]
    (path,) = area.get_paths()
    x, y = path.vertices[:, 0], path.vertices[:, 1]
    places = np.unique(x)
    low = np.array([y[x == place].min() for place in places])
    high = np.array([y[x == place].max() for place in places])
    return places, low, high


def remarks(ax: Axes) -> str:
    """The small line below the title."""
    return " ".join(text.get_text() for text in ax.texts if text.get_gid() == "subtitle")


def note(figure: Figure) -> str:
    (found,) = [text.get_text() for text in figure.texts if text.get_gid() == "note"]
    return found.replace("\n", " ")


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def look(one: Line2D) -> tuple[object, ...]:
    """All that tells a line from another on a grey printer: dashes, marker, filling, width, lightness."""
    filled = to_rgb(one.get_markerfacecolor()) == to_rgb(one.get_color())
    grey = round(10 * float(np.dot(to_rgb(one.get_color()), (0.299, 0.587, 0.114))))
    dash = (one.get_linestyle(), getattr(one, "_unscaled_dash_pattern", None))
    return (str(dash), one.get_marker(), filled, one.get_linewidth(), grey)


def untidy_texts(figure: Figure) -> list[str]:
    """Texts that reach out of the figure or over another text, as rendered by Agg; [] for a tidy figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    every = {id(label) for axis in axes for tick in axis.majorTicks for label in (tick.label1, tick.label2)}
    shown = {id(label) for axis in axes for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
    unseen = every - shown  # ticks outside the view are never drawn, though findobj lists them
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen
    ]
    frame = figure.bbox
    bad = [
        f"{name!r} leaves the figure"
        for name, box in boxes
        if box.x0 < frame.x0 - 0.5 or box.y0 < frame.y0 - 0.5 or box.x1 > frame.x1 + 0.5 or box.y1 > frame.y1 + 0.5
    ]
    for (name, box), (other, second) in combinations(boxes, 2):
        if box.padded(-0.5).overlaps(second.padded(-0.5)):
            bad.append(f"{name!r} over {other!r}")
    return bad
