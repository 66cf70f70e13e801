"""What a figure of the gallery is, and the list of them.

A function's docstring says what the figure is called and what to look for in it; the documentation shows both, and the
code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opd_probe.lab.gallery.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GALLERY", "Entry", "figure"]

Draw = Callable[[Data], "Figure"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A figure of the gallery.

    Attributes:
        name: the stem of its files.
        paper: the figures of the paper that it corresponds to.
        kind: the name by which ``opd-probe figures --only`` draws its kind from a user's traces.
        draw: tables in, figure out.
    """

    name: str
    paper: str
    kind: str
    draw: Draw

    @property
    def title(self) -> str:
        """What it is called."""
        return str(inspect.getdoc(self.draw)).partition("\n")[0].rstrip(".")

    @property
    def look_for(self) -> str:
        """What to look for in it."""
        return str(inspect.getdoc(self.draw)).partition("\n")[2].strip()


GALLERY: Final[dict[str, Entry]] = {}
"""Every figure by name."""


def figure(name: str, paper: str, kind: str) -> Callable[[Draw], Draw]:
    """Enter a function into the gallery."""

    def enter(draw: Draw) -> Draw:
        GALLERY[name] = Entry(name, paper, kind, draw)
        return draw

    return enter
