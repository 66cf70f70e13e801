"""The geometry of charts: places of values, stretches that are known, and round numbers beside the axes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from opd_probe.pages.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart, nice_ticks, tick_labels


def panel(values: list[float | None], **more: Any) -> dict[str, Any]:
    places = list(range(len(values)))
    series = {
        "index": 0, "places": places, "values": values, "low": [None] * len(values), "high": [None] * len(values),
        "texts": [None if value is None else str(value) for value in values],
    }  # fmt: skip
    return {
        "xs": [float(10 * place) for place in places], "labels": [str(10 * place) for place in places],
        "series": [{**series, **more.pop("series", {})}], "limits": (None, None), "band": None, "paths": [], **more,
    }  # fmt: skip


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+),([-\d.]+)", path)]


def test_values_stand_between_the_ticks_that_hold_them() -> None:
    drawn = chart(panel([0.2, 0.4, 0.3], limits=(0.0, 1.0)))
    (series,) = drawn["series"]
    xs, ys = zip(*points(series["line"]), strict=True)
    assert xs == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    assert ys[0] > ys[2] > ys[1]
    ticks = {float(label): y for y, label in drawn["y_ticks"]}
    (a, b) = sorted(ticks)[:2]
    scale = (ticks[b] - ticks[a]) / (b - a)
    for y, value in zip(ys, (0.2, 0.4, 0.3), strict=True):
        assert y == pytest.approx(ticks[a] + scale * (value - a), abs=0.2)
    assert all(TOP <= y <= HEIGHT - BOTTOM for y in (*ys, *ticks.values()))


def test_what_is_unknown_is_a_gap() -> None:
    drawn = chart(panel([1.0, 2.0, None, 3.0, 4.0, None, 5.0]))
    (series,) = drawn["series"]
    assert series["line"].count("M") == 2  # a point alone makes no line
    assert len(series["dots"]) == 5
    assert [stop["label"] for stop in drawn["stops"]] == ["0", "10", "30", "40", "60"]


def test_intervals_are_areas_and_a_single_one_is_a_line() -> None:
    bounds = {"low": [0.5, 1.5, None, 2.5], "high": [1.5, 2.5, None, 3.5]}
    drawn = chart(panel([1.0, 2.0, 2.5, 3.0], series=bounds))
    (series,) = drawn["series"]
    assert series["area"].count("Z") == 1
    assert len(points(series["area"])) == 4
    assert len(points(series["whiskers"])) == 2


@pytest.mark.parametrize("values", [[], [None], [0.0], [1.0, 1.0], [-3.0], [1e-9, 2e-9], [1e12, -1e12]])
def test_hardly_anything_to_draw(values: list[float | None]) -> None:
    drawn = chart(panel(values))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn["series"][0]["dots"])
    assert drawn["y_ticks"]


def test_references_and_limits() -> None:
    drawn = chart(
        panel([0.1], limits=(0.0, 1.0), band=(0.97, 0.99), paths=[{"of": "lab", "points": [(0, 0.2), (1, 1.0)]}])
    )
    top, height = drawn["band"]
    assert TOP <= top < top + height
    assert points(drawn["paths"][0]["line"])[1] == (WIDTH - RIGHT, TOP)


def test_round_numbers() -> None:
    assert nice_ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([-0.02, 0.0]) == ["−0.02", "0.00"]
    assert tick_labels([0.0, 100.0]) == ["0", "100"]
    assert tick_labels([0.0, 2e5]) == ["0", "2e+05"]


def test_many_steps_have_few_labels() -> None:
    drawn = chart(panel([float(value) for value in range(200)]))
    xs = [x for x, _ in drawn["x_ticks"]]
    assert 3 < len(xs) < 8
    assert next(label for _, label in drawn["x_ticks"]) == "0"
