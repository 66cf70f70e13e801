"""Tables and figures as the files of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from opd_probe.output import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table; NaN is an empty field."""
    return write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.pdf`` and ``stem.png``."""
    from opd_probe.plots import render

    return [
        write_bytes(stem.with_name(f"{stem.name}.pdf"), render(figure, "pdf")),
        write_bytes(stem.with_name(f"{stem.name}.png"), render(figure, "png")),
    ]
