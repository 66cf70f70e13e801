"""Reading a page as a browser does: its elements, what it would load, and what its script made of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements with their attributes and their own text; raw texts of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in ("meta", "link", "br", "img"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        name = self.elements[self._open.pop()][0]
        assert name == tag, f"</{tag}> closes <{name}>"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def all(self, tag: str, kind: str | None = None) -> list[tuple[dict[str, str], str]]:
        """Attributes and own text of the elements of a tag (and class)."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (kind is None or kind in attributes.get("class", "").split())
        ]

    @property
    def text(self) -> str:
        return "".join(part for name, _, texts in self.elements if name not in ("script", "style") for part in texts)

    @property
    def data(self) -> dict[str, Any]:
        (found,) = [text for attributes, text in self.all("script") if attributes.get("id") == "data"]
        return dict(json.loads(found, parse_constant=lambda name: f"{name} is no JSON"))


def external_references(html: str) -> list[str]:
    """Everything in a page that a browser might load from elsewhere."""
    page = Page(html)
    found = []
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            value = attributes.get(name)
            if value is not None and not value.startswith(("#", "data:,")):
                found.append(f"<{tag} {name}={value!r}>")
    for tag, _, texts in page.elements:
        if tag in ("style", "script"):
            found += re.findall(r"url\([^)]*\)|@import|@font-face|fetch\(|XMLHttpRequest|import\(", "".join(texts))
    plain = "".join(text for _, text in page.all("style")) + "".join(
        text for attributes, text in page.all("script") if "id" not in attributes
    )
    return found + re.findall(r"(?:https?:)?//[a-z][\w.]*\.\w+", plain)


def rendered(path: Path) -> str:
    """The document after its script ran, as headless chromium dumps it."""
    assert BROWSER is not None
    with TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={profile}", "--dump-dom", path.as_uri(),
            ],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
    return done.stdout
