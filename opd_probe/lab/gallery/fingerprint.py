"""What a figure shows, as numbers and words: its artists' data, whatever font, colour or version of matplotlib."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

__all__ = ["drawn_data", "fingerprint"]

_SAID = {"note", "subtitle", "value", "not-available", "group"}


def fingerprint(figure: Figure) -> str:
    """Sixteen hexadecimal digits that change when a number or a word of a figure does."""
    text = json.dumps(drawn_data(figure), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drawn_data(figure: Figure) -> list[Any]:
    """The title, the note, and for each panel its title, its unit and everything drawn in it, to five digits."""
    texts = [text.get_text() for text in figure.texts if text.get_gid() in _SAID]
    return [_words(figure.get_suptitle()), *map(_words, texts), *([*_panel(ax)] for ax in figure.axes)]


def _panel(ax: Axes) -> Iterator[Any]:
    yield _words(ax.get_title(loc="left"))
    yield [_words(ax.get_xlabel()), _words(ax.get_ylabel())]
    yield from (_words(text.get_text()) for text in ax.texts if text.get_gid() in _SAID)
    yield [label.get_text() for label in ax.get_yticklabels() if label.get_text()] if ax.patches else []
    for line in ax.lines:
        if line.get_gid() != "reference":
            yield [str(line.get_gid()), _numbers(line.get_xdata()), _numbers(line.get_ydata())]
    for area in ax.collections:
        if isinstance(area, QuadMesh):
            yield [str(area.get_gid()), _numbers(np.ma.filled(np.ma.asarray(area.get_array(), dtype=float), np.nan))]
        elif isinstance(area, PolyCollection):  # a set of corners: their order is the version's
            corners = {tuple(_numbers(point)) for path in area.get_paths() for point in np.asarray(path.vertices)}
            yield [str(area.get_gid()), sorted(corners)]
        elif isinstance(area, LineCollection):
            yield [str(area.get_gid()), *(_numbers(segment) for segment in area.get_segments())]
    for patch in ax.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            yield [str(patch.get_gid()), _numbers(values), _numbers(edges)]
        elif isinstance(patch, Rectangle) and patch.get_gid() != "reference":
            yield [str(patch.get_gid()), _numbers([patch.get_x(), patch.get_width()])]


def _words(text: str) -> str:
    """A text without its line breaks, which are a matter of layout."""
    return " ".join(text.split())


def _numbers(values: Any) -> list[str]:
    return [f"{value:.5g}" for value in np.asarray(values, dtype=np.float64).ravel()]
