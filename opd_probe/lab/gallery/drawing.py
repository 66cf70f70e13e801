"""Draws the gallery from the aggregated tables, and writes the page that shows it.

Every file carries the fingerprint of what it shows, so that a test can tell a figure that was not redrawn after its
data changed.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Final, Literal

import opd_probe.lab.gallery.mechanism as mechanism
import opd_probe.lab.gallery.recipe as recipe
from opd_probe.errors import MissingError
from opd_probe.lab.gallery.data import Data
from opd_probe.lab.gallery.entry import GALLERY, Entry
from opd_probe.lab.gallery.fingerprint import fingerprint
from opd_probe.plots import render

__all__ = ["FORMS", "draw", "draw_gallery", "gallery", "page", "stored_fingerprint"]

FORMS: Final[tuple[Literal["pdf", "png"], ...]] = ("pdf", "png")
_DPI: Final = 150
_STORED: Final = re.compile(rb"opd-probe figure ([0-9a-f]{16})")


def gallery() -> list[Entry]:
    """Every figure, in the order of the paper."""
    return [GALLERY[name] for name in sorted(GALLERY)]


def draw(entry: Entry, data: Data, out: Path) -> list[Path]:
    """Draw one figure into ``out``, as PDF and PNG.

    Raises:
        MissingError: the tables lack its rows.
    """
    figure = entry.draw(data)
    about = f"opd-probe figure {fingerprint(figure)}"
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{entry.name}.{form}" for form in FORMS]
    for path, form in zip(files, FORMS, strict=True):
        path.write_bytes(render(figure, form, about=about, dpi=_DPI))
    return files


def draw_gallery(data: Data, out: Path) -> list[str]:
    """Draw every figure whose rows the tables hold; returns why the others were not drawn, and removes their files."""
    missing = []
    for entry in gallery():
        try:
            draw(entry, data, out)
        except MissingError as error:
            missing.append(f"{entry.name}: {error}")
            for form in FORMS:
                (out / f"{entry.name}.{form}").unlink(missing_ok=True)
    return missing


def stored_fingerprint(path: Path) -> str | None:
    """The fingerprint that a drawn file carries; None for a file of other origin."""
    found = _STORED.search(path.read_bytes())
    return found.group(1).decode() if found else None


_HEAD: Final = """# Gallery

Every figure of the paper ([arXiv 2604.13016](https://arxiv.org/abs/2604.13016)), drawn from [the lab](lab.md)'s own
runs through the same functions that draw yours. `make figures` redraws all of them from the tables in `figures/data/`.
A figure says what to look for, not that it is there: whether a statement of the paper holds in miniature is in
`figures/claims.json`.

Seeds are thin lines (or dots), their mean is thick. Each figure is there as a PDF too, beside its PNG in `figures/`.

The code under each figure draws it from the lab's tables, after

```python
import opd_probe
from opd_probe.lab.gallery import Data

data = Data("figures/data")
```

On your own runs the command below each figure draws the same kind from stored traces, and says what is missing where
they do not suffice; `opd-probe figures --traces DIR` draws every kind that they allow.
"""


def page(out: Path) -> str:
    """The gallery's page: each figure that is in ``out``, what to look for, and what draws it."""
    shown = [entry for entry in gallery() if (out / f"{entry.name}.png").is_file()]
    return "\n".join([_HEAD, *map(_section, shown)])


def _section(entry: Entry) -> str:
    figures = f"Figure{'s' if ',' in entry.paper else ''} {entry.paper}"
    source = inspect.getsource(entry.draw)
    code = textwrap.dedent(source.rpartition('"""\n')[2]).replace("return ", "figure = ", 1).rstrip()
    for name, value in _constants(code).items():
        code = re.sub(rf"\b{name}\b", value, code)
    return (
        f"## {entry.title} ({figures})\n\n"
        f"![{entry.title}](../figures/{entry.name}.png)\n\n"
        f"{entry.look_for}\n\n"
        f"```python\n{code}\n```\n\n"
        f"```sh\nopd-probe figures --traces DIR --only {entry.kind}\n```\n"
    )


def _constants(code: str) -> dict[str, str]:
    """The gallery's own constants that a piece of code uses, written out."""
    values = {**vars(mechanism), **vars(recipe)}
    names = set(re.findall(r"\b_[A-Z][A-Z_]+\b", code))
    return {name: repr(values[name]).replace("'", '"') for name in names}
