"""The page of ``opd-probe tokens``: responses shaded by a quantity, tokens that matter, the most extreme states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_probe.pages.rendering import render


def render_tokens(page: Mapping[str, Any]) -> str:
    """The page as HTML text; everything that comes from ``page`` is escaped.

    Args:
        page: ``title``, ``facts``, ``missing``, ``cards``, ``choice``, ``rollouts``, ``lists``, ``extremes`` for the
            template, and ``data`` (``quantities``, ``labels``, ``states``) for the script, in JSON types.
    """
    return render("tokens.html", page, ["page.css"], ["page.js", "tokens.js"])
