"""Brings the figures under ``figures/`` into the site, where pages name them as a code host does: ``../figures/…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FIGURES = Path(__file__).parent.parent / "figures"


def on_files(files: Files, config: Any) -> Files:
    """Add every figure as a file of the site."""
    for path in sorted([*FIGURES.glob("*.png"), *FIGURES.glob("*.pdf")]):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to where the figures lie in the site."""
    return markdown.replace("](../figures/", "](figures/")
