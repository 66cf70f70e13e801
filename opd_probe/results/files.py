"""Tables and figures as the files of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from opd_probe.errors import OpdProbeError, warn
from opd_probe.imports import seldom_collected
from opd_probe.output import write_bytes
from opd_probe.plain import csv_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table; NaN is an empty field, and no text is a formula (:func:`opd_probe.plain.csv_cell`)."""
    texts = table.select_dtypes(include=["object", "string", "category"]).columns
    plain = table.assign(**{name: table[name].astype("object").map(csv_cell) for name in texts})
    return write_bytes(path, plain.to_csv(index=False, lineterminator="\n").encode())


def draw_figure(draw: Callable[[], Figure | None], stem: Path) -> list[Path]:
    """Draw and write ``stem.pdf`` and ``stem.png``. One that cannot be drawn is warned about, and takes nothing along.

    None is not drawn.

    Raises:
        OpdProbeError: there is nothing to draw, or it cannot be written.
    """
    try:
        with seldom_collected():
            figure = draw()
            return [] if figure is None else save_figure(figure, stem)
    except OpdProbeError:
        raise
    except Exception as error:  # whatever a drawing library raises: the numbers are paid for
        warn(f"figure {stem}: it cannot be drawn ({type(error).__name__}: {error}); tables are not concerned")
        return []


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.pdf`` and ``stem.png``."""
    from opd_probe.plots import render_all

    kinds: tuple[Literal["pdf"], Literal["png"]] = ("pdf", "png")
    files = zip(kinds, render_all(figure, kinds), strict=True)
    return [write_bytes(stem.with_name(f"{stem.name}.{kind}"), content) for kind, content in files]
