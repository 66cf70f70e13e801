from __future__ import annotations

import json

import numpy as np
import pandas as pd

from opd_probe.results.files import write_csv
from opd_probe.results.tables import json_row, present, sort_key


def test_what_json_cannot_say_is_null_and_an_infinity_is_named() -> None:
    row = json_row({"a": np.float32(1.5), "b": float("nan"), "c": np.inf, "d": -np.inf, "n": np.int64(3), "s": "own"})
    assert row == {
        "a": 1.5, "b": None, "c": None, "d": None, "n": 3, "s": "own",
        "infinite": {"c": "inf", "d": "-inf"},
    }  # fmt: skip
    json.dumps(row, allow_nan=False)
    assert "infinite" not in json_row({"a": 1.0})


def test_rows_go_by_run_teacher_and_numeric_step() -> None:
    keys = [("b", "t", 5), ("a", "t", 100), ("a", "t", 20), ("a", "s", 5), ("a", "t", None)]
    rows = sorted(({"run": r, "teacher": t, "step": s} for r, t, s in keys), key=sort_key)
    assert [row["step"] for row in rows] == [5, None, 20, 100, 5]


def test_columns_without_a_value_are_not_shown() -> None:
    assert present(("a", "b", "c"), [{"a": None, "b": 1}, {"a": None, "b": None}]) == ("b",)


def test_csv(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = write_csv(pd.DataFrame({"a": [1.0, np.nan, np.inf]}), tmp_path / "deep" / "x.csv")
    assert path.read_text() == 'a\n1.0\n""\ninf\n'
    assert [p.name for p in path.parent.iterdir()] == ["x.csv"]
