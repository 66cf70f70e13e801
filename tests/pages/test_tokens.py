"""The page's template on its own: whatever text it is given stays text."""

from __future__ import annotations

from typing import Any

import pytest

from opd_probe.pages import render_tokens
from opd_probe.pages.rendering import embed, number
from tests.pages.looking import Page, external_references

NASTY = "</script><img src=x onerror=alert(1)>&amp;\"'<!--{{ 7*7 }}"


def page(text: str) -> dict[str, Any]:
    """A page on which every text is ``text``."""
    entry = {"id": 3, "token": text, "own": 0.5, "other": None, "shared": True, "bar": 50}
    state = {
        "rollout_id": text, "position": 4, "token": text, "token_id": 3, "before": text, "text": text, "after": text,
        "numbers": [(text, 0.25)], "student": [entry], "teacher": [{**entry, "shared": False}],
    }  # fmt: skip
    table = {"caption": text, "columns": [text], "rows": [{"token_id": 3, "token": text, "shown": [-0.5], "bar": 9}]}
    return {
        "title": text,
        "facts": [(text, text)],
        "missing": [text],
        "cards": [{"name": text, "value": 1.5, "note": text}],
        "choice": text,
        "rollouts": [
            {
                "id": text,
                "verdict": "wrong",
                "about": text,
                "prompt": text,
                "prompt_length": 7,
                "pieces": [
                    {"state": 0, "text": text, "why": text, "first": True},
                    {"state": None, "text": text, "why": text},
                ],
                "cut": text,
            }
        ],
        "lists": [{"key": "list", "short": text, "title": text, "note": text, "tables": [table]}],
        "extremes": [{"key": "most", "short": text, "title": text, "note": text, "states": [state]}],
        "data": {
            "quantities": [{"title": text, "unit": text}],
            "labels": {"3": text},
            "states": [{"v": [None]}],
        },
        "version": text,
    }


def test_text_stays_text() -> None:
    html = render_tokens(page(NASTY))
    read = Page(html)
    assert read.all("img") == []
    assert len(read.all("script")) == 2
    assert read.data["labels"]["3"] == NASTY
    for tag, kind in (("span", "t"), ("span", "other"), ("pre", "prompt"), ("mark", None), ("h1", None), ("li", None)):
        assert read.all(tag, kind)[0][1] == NASTY, tag
    assert NASTY in read.text
    assert external_references(html) == []


def test_the_policy_of_the_page_allows_nothing_from_outside() -> None:
    (policy,) = [a["content"] for a, _ in Page(render_tokens(page("x"))).all("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy


def test_the_walk_sees_a_reference() -> None:
    html = render_tokens(page("x"))
    assert external_references(html.replace("<main>", '<main><a href="https://a.example/">x</a>')) != []
    assert external_references(html.replace("</style>", "@import 'x';</style>")) != []
    assert external_references(html.replace('"use strict";', '"use strict"; fetch("x");')) != []


def test_every_token_can_be_reached_by_keyboard() -> None:
    read = Page(render_tokens(page("x")))
    assert [attributes["tabindex"] for attributes, _ in read.all("span", "t")] == ["0"]
    assert len(read.all("label")) == 1
    (select,) = read.all("select")
    assert select[0]["id"] == read.all("label")[0][0]["for"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (0.12345, "0.123"), (-3.14159, "−3.14"), (1.23e-7, "1.2e−7"), (12345, "12,345"),
        (2.5e9, "2.5e+9"), ("∞", "∞"),
    ],
)  # fmt: skip
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_embedded_json_cannot_end_its_element() -> None:
    assert "<" not in embed({"a": NASTY})
    assert ">" not in embed({"a": NASTY})
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(float("nan"))
