"""The page of ``opd-probe tokens``: responses shaded by a quantity, tokens that matter, the most extreme states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from opd_probe.plain import visible


def render_tokens(page: Mapping[str, Any]) -> str:
    """The page as HTML text; everything that comes from ``page`` is escaped.

    Args:
        page: ``title``, ``facts``, ``missing``, ``cards``, ``choice``, ``rollouts``, ``lists``, ``extremes`` for the
            template, and ``data`` (``quantities``, ``labels``, ``states``) for the script, in JSON types.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_source), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    template = environment.get_template("tokens.html")
    data = page["data"]
    page = {name: _visible(value) for name, value in page.items() if name != "data"}
    data = {**data, "labels": _visible(data["labels"])}
    return template.render(
        **page,
        data=data,
        style=Markup(_source("tokens.css")),
        script=Markup(_source("tokens.js")),
        embedded=embed(data),
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
