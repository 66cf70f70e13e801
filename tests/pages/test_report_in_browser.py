"""The report in a real browser: pointer, keys, filters, a narrow window, dark, print, and text that would act."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_probe.plain import visible
from tests.pages.browser import Tab, browser
from tests.pages.looking import BROWSER, Page
from tests.pages.reports import PROBES, STEPS, TEACHER, Made, make_report, make_traces

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
    pytest.mark.filterwarnings("ignore::opd_probe.OpdProbeWarning"),  # few prompts, overlaps of one token
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("browser")
    return make_report(make_traces(root, length=14), root / "page")


@pytest.fixture(scope="module")
def bare(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_report(made.page.parent.parent / "out", tmp_path_factory.mktemp("bare"), "--no-text")


@pytest.fixture(scope="module")
def data(made: Made) -> dict[str, Any]:
    return Page(made.html).data


@pytest.fixture(scope="module")
def window() -> Iterator[Tab]:
    with browser() as tab:
        yield tab


@pytest.fixture
def tab(window: Tab, made: Made) -> Iterator[Tab]:
    """The page, when its first responses are there. Nothing may have gone wrong on it when a test is over."""
    show(window, made)
    yield window
    window.run("0")  # whatever was to be reported has come
    assert window.faults == []


def show(window: Tab, made: Made, **settings: Any) -> None:
    window.open(made.page, **settings)
    window.wait("document.querySelectorAll('#sides .t').length > 0")


def kept(tab: Tab) -> dict[str, Any]:
    """The token that is kept or focused: its text, and where it stands."""
    return dict(tab.run(
        "(() => { const t = document.querySelector('.t.kept') ?? document.activeElement;"
        "return {text: t.textContent, place: t.place, focused: t === document.activeElement}; })()"
    ))  # fmt: skip


def test_pointing_at_a_chart_reads_its_values(tab: Tab, data: dict[str, Any]) -> None:
    stops = data["charts"]["chart-overlap_ratio"]["stops"]
    for share, stop in ((0.1, stops[0]), (0.35, stops[1]), (0.98, stops[-1])):
        tab.hover("#chart-overlap_ratio svg", share)
        told = tab.text("#chart-overlap_ratio .tip")
        assert f"step {stop['label']}" in told
        assert f"mine: {stop['texts'][0][1]}" in told
    tab.hover("h1")
    assert tab.run("document.querySelector('#chart-overlap_ratio .tip').hidden")


def test_keys_read_a_chart_too(tab: Tab, data: dict[str, Any]) -> None:
    stops = data["charts"]["chart-reverse_kl"]["stops"]
    tab.run("document.querySelector('#chart-reverse_kl svg').focus()")
    for key, at in ((None, 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("End", 2)):
        if key:
            tab.press(key)
        assert stops[at]["texts"][0][1] in tab.text("#chart-reverse_kl .tip")
    tab.press("Escape")
    assert tab.run("document.querySelector('#chart-reverse_kl .tip').hidden")


def test_a_name_hides_its_curve(tab: Tab) -> None:
    seen = "getComputedStyle(document.querySelector('#chart-accuracy .series')).display"
    assert tab.run(seen) == "inline"
    tab.click(".key-button")
    assert tab.run(seen) == "none"
    assert tab.run("document.querySelector('.key-button').getAttribute('aria-pressed')") == "false"
    tab.click(".key-button")
    assert tab.run(seen) == "inline"


def test_every_control_is_reached_by_tab(tab: Tab) -> None:
    tab.run("document.body.focus()")
    seen = []
    for _ in range(60):
        tab.press("Tab")
        seen.append(tab.run(
            "(() => { const e = document.activeElement; return e.id || e.getAttribute('class') || e.tagName; })()"
        ))  # fmt: skip
    wanted = {"quantity", "outcome", "at-step", "extreme-kind", "next", "svg", "A", "SUMMARY"}
    assert wanted <= {*seen}
    assert any("cell" in str(one) for one in seen)
    assert any(str(one).startswith("t ") for one in seen)


def columns(tab: Tab) -> int:
    return int(tab.run("document.querySelector('#matrix tr').cells.length - 1"))


def test_filters_show_the_responses_that_fit(tab: Tab, data: dict[str, Any]) -> None:
    traces = data["samples"]["groups"][0]["traces"]
    rules = {
        "all": lambda _: True,
        "correct": lambda response: response["correct"] == 1,
        "wrong": lambda response: response["correct"] == 0,
        "truncated": lambda response: response["cut"] == 1,
    }
    for outcome, rule in rules.items():
        for step in ("any", str(STEPS[-1])):
            tab.choose("#outcome", outcome)
            tab.choose("#at-step", step)
            there = [t for t in traces if step in ("any", t["step"])]
            units = {r["unit"] for t in there for r in t["responses"] if rule(r)}
            assert columns(tab) == len(units)
            assert tab.text("#found") == f"{len(units)} of 12 shown"
            tab.wait(f"{sorted(units)}.includes(Number(document.querySelector('#sides').dataset.unit))")
            dim = tab.run("document.querySelectorAll('#matrix .cell.dim').length")
            fitting = sum(rule(r) for t in there for r in t["responses"])
            assert dim == 3 * len(units) - fitting


def test_a_filter_that_nothing_fits_says_so(window: Tab, made: Made, tmp_path: Path) -> None:
    html = made.html.replace('"correct":1', '"correct":0')
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    window.open(tmp_path / "page.html")
    window.wait("document.querySelectorAll('#sides .t').length > 0")
    window.choose("#outcome", "correct")
    assert window.text("#sides") == "No response fits."
    window.choose("#outcome", "all")
    window.wait("document.querySelectorAll('#sides .t').length > 0")
    assert window.faults == []


def test_a_state_under_the_pointer_and_its_lists(tab: Tab, data: dict[str, Any]) -> None:
    tab.hover("#sides .t")
    told = tab.text("#panel")
    assert "step 0, position 1" in told
    assert "Student's top 4" in told
    assert "Teacher's top 4" in told
    titles = [quantity["title"] for quantity in data["samples"]["quantities"]]
    assert all(title in told for title in titles)
    assert told.count("●") % 2 == 0
    tab.choose("#quantity", "1")
    assert tab.text("#panel .now").startswith(titles[1])
    hues = tab.run(
        "[...new Set([...document.querySelectorAll('#sides .t')].map((t) => t.className.split(' ')[1]))].sort()"
    )
    assert hues == ["neg", "pos"]


def test_keys_walk_through_tokens_and_keep_one(tab: Tab) -> None:
    tab.run("document.querySelector('#sides .t').focus()")
    trace, response, _ = kept(tab)["place"]
    tab.press("ArrowRight", "ArrowRight")
    assert kept(tab)["place"] == [trace, response, 3]
    tab.press("ArrowLeft")
    assert kept(tab)["place"] == [trace, response, 2]
    tab.press("End")
    last = kept(tab)["place"]
    tab.press("ArrowRight")
    assert kept(tab)["place"][0] == trace + 1  # on to the next step
    tab.press("ArrowLeft", "Enter")
    assert kept(tab)["place"] == last
    tab.hover("#sides .t")
    assert f"position {last[2]}" in tab.text("#panel")
    tab.press("Escape")
    tab.hover("h1")
    tab.hover("#sides .t")
    assert "position 1" in tab.text("#panel")


def test_keys_walk_through_the_prompts(tab: Tab) -> None:
    tab.run("document.querySelector('.cell.chosen').focus()")
    tab.press("ArrowRight")
    tab.wait("document.querySelector('#sides').dataset.unit === '1'")
    tab.press("ArrowDown")
    assert tab.run("document.activeElement.closest('tr').rowIndex") == 1
    tab.click("#next")
    tab.wait("document.querySelector('#sides').dataset.unit === '2'")
    tab.click("#previous")
    tab.wait("document.querySelector('#sides').dataset.unit === '1'")


def test_one_jumps_to_an_extreme_state(tab: Tab, data: dict[str, Any]) -> None:
    group = data["samples"]["groups"][0]
    for kind in ("reverse_kl", "lowest_reward"):
        tab.choose("#extreme-kind", kind)
        trace, response, token, _, _ = group["extremes"][kind][0]
        tab.click("#extreme-list button")
        tab.wait("document.querySelector('.t.kept') !== null")
        found = kept(tab)
        assert found["place"] == [trace, response, token]
        assert found["focused"]
        unit = group["traces"][trace]["responses"][response]["unit"]
        assert tab.run("document.querySelector('#sides').dataset.unit") == str(unit)
        assert f"step {STEPS[trace]}, position {token}" in tab.text("#panel")
        tab.press("Escape")


def test_text_that_would_act_stays_text(tab: Tab) -> None:
    shown = ""
    for unit in range(12):
        tab.run(f"document.querySelector('.cell[data-unit=\"{unit}\"]').click()")
        tab.wait(f"document.querySelector('#sides').dataset.unit === '{unit}'")
        shown += tab.run("document.querySelector('#sides').textContent + document.querySelector('#prompt').textContent")
        tab.run(
            "for (const token of document.querySelectorAll('#sides .t'))"
            " token.dispatchEvent(new Event('mouseover', {bubbles: true}))"
        )
    said = [probe for probe in PROBES if visible(probe, keep="\n\t") in shown]
    assert len(said) > 15
    assert tab.run("window.hacked") is None
    assert (
        tab.run("document.querySelectorAll('#sides img, #sides svg, #sides script, #panel script, iframe').length") == 0
    )
    assert tab.run("document.querySelectorAll('script').length") == 2
    assert TEACHER in tab.text(".judged h3")
    assert tab.run("getComputedStyle(document.body).display") == "block"


def test_a_phone(window: Tab, made: Made) -> None:
    show(window, made, width=360, height=740)
    wide = window.run(
        "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > 361"
        " && !e.closest('.scroll, .sides, ol, svg, .tip, #panel th')).map((e) => e.className || e.tagName)"
    )
    assert wide == []
    assert window.run("document.documentElement.scrollWidth") <= 360
    window.hover("#sides .t")
    panel = window.run("(({top, bottom}) => [top, bottom])(document.querySelector('#panel').getBoundingClientRect())")
    assert panel[1] <= 741
    window.hover("#chart-accuracy svg", 0.9)
    tip = window.run(
        "(({left, right}) => [left, right])(document.querySelector('#chart-accuracy .tip').getBoundingClientRect())"
    )
    assert tip[0] >= 0
    assert tip[1] <= 360


def luminance(window: Tab, element: str, property: str) -> float:
    color = window.run(f"getComputedStyle(document.querySelector('{element}')).{property}")
    return sum(float(part) for part in re.findall(r"[\d.]+", color)[:3]) / 765


def test_dark_and_light(window: Tab, made: Made) -> None:
    for scheme, paper in (("dark", 0.1), ("light", 1.0)):
        show(window, made, prefers_color_scheme=scheme)
        assert luminance(window, "body", "backgroundColor") == pytest.approx(paper, abs=0.05)
        for element in ("body", ".says", ".evidence", "#panel dt", ".word", ".tick"):
            ink = luminance(window, element, "fill" if element == ".tick" else "color")
            assert abs(ink - paper) > 0.3, element


def test_print(window: Tab, made: Made) -> None:
    show(window, made, prefers_color_scheme="dark")
    pdf = window.printed()
    assert pdf.startswith(b"%PDF")
    window.call("Emulation.setEmulatedMedia", media="print")
    assert luminance(window, "body", "backgroundColor") == 1.0
    shown = "getComputedStyle(document.querySelector('{}')).display !== 'none'"
    assert not any(window.run(shown.format(one)) for one in ("#panel", ".tools", ".finder", "#next"))
    assert all(window.run(shown.format(one)) for one in (".word", ".chart svg", ".side .tokens", ".strips"))
    assert window.faults == []


def test_without_words(window: Tab, bare: Made) -> None:
    show(window, bare)
    text = window.run("document.querySelector('#sides').textContent")
    assert "▇" in text
    assert "word" not in text
    window.hover("#sides .t")
    assert "Reverse KL" in window.text("#panel")
    assert window.run("document.querySelectorAll('#panel table').length") == 0
    window.click("#extreme-list button")
    window.wait("document.querySelector('.t.kept') !== null")
    assert window.faults == []


def test_a_long_response_is_shown_in_two_parts(window: Tab, tmp_path: Path) -> None:
    made = make_report(make_traces(tmp_path, prompts=1, length=2400, steps=(1, 2)), tmp_path / "page")
    show(window, made)
    (trace, _) = Page(made.html).data["samples"]["groups"][0]["traces"]
    n = next(response["n"] for response in trace["responses"] if response["unit"] == 0)
    first = "document.querySelectorAll('.side')[0].querySelectorAll('.t').length"
    assert n > 1500
    assert window.run(first) == 1499
    window.click(".side button")
    assert window.run(first) == n - 1
    window.choose("#quantity", "2")
    assert window.run("document.querySelector('.side .tokens').lastElementChild.className").startswith("t seq")
    jump = next(e for e in Page(made.html).data["samples"]["groups"][0]["extremes"]["reverse_kl"])
    window.click("#extreme-list button")
    window.wait("document.querySelector('.t.kept') !== null")
    assert kept(window)["place"] == jump[:3]
    assert window.faults == []
