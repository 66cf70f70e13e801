"""``make figures``: ``python -m opd_probe.lab.gallery``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from opd_probe.lab.gallery.data import Data
from opd_probe.lab.gallery.drawing import draw_gallery, page


def main(
    data: Annotated[Path, typer.Option(help="The aggregated tables.")] = Path("figures/data"),
    out: Annotated[Path, typer.Option(help="Where the figures are written.")] = Path("figures"),
    docs: Annotated[Path, typer.Option(help="The gallery's page.")] = Path("docs/gallery.md"),
) -> None:
    """Redraw the gallery from its tables, and write its page."""
    missing = draw_gallery(Data(data), out)
    docs.write_text(page(out), encoding="utf-8")
    for line in missing:
        print(f"not drawn: {line}", file=sys.stderr)
    if missing:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
