"""What the pages share: templates under which every text stays text, and data for their scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from opd_probe.plain import visible


def render(template: str, page: Mapping[str, Any], styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A page as HTML text; everything that comes from ``page`` is escaped, control characters are spelled out.

    Args:
        page: values for the template, and ``data`` for the scripts, in JSON types.
        styles, scripts: files of this package that go into the page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_source), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    shown = _visible(page)
    return environment.get_template(template).render(
        **shown,
        style=Markup("".join(_source(name) for name in styles)),
        script=Markup("".join(_source(name) for name in scripts)),
        embedded=embed(shown["data"]),
    )


def _visible(value: Any) -> Any:
    """The same with the control characters of every text spelled out, line breaks and tabs apart."""
    if isinstance(value, str):
        return visible(value, keep="\n\t")
    if isinstance(value, Mapping):
        return {name: _visible(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(held) for held in value]
    return value


def embed(data: Any) -> Markup:
    """JSON for a script element: no character of it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def number(value: Any) -> str:
    """A number to read: three significant digits, a true minus, – where it is unknown."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    text = "0" if value == 0 else f"{value:.3g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e+").replace("-", "−")


def _source(name: str) -> str:
    return (files("opd_probe.pages") / name).read_text(encoding="utf-8")
