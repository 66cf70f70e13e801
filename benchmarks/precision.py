"""How right the numbers are: what ``make real`` measured on a language model, as tables for docs/metrics.md.

python -m benchmarks.precision             # print them
python -m benchmarks.precision --docs      # show them in the documentation again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "precision.json"
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"

Report = dict[str, Any]
Row = dict[str, Any]


def rounded(value: float, digits: int = 3) -> float:
    """A number with as many significant digits as are worth keeping."""
    return float(f"{float(value):.{digits}g}")


def as_text(report: Report) -> str:
    return json.dumps(report["pairs"], indent=1)


def show_in(page: Path, report: Report) -> None: ...
