"""Checkpoints and rollouts, made once; and the table of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks import precision
from tests.real.language_model import save_models
from tests.real.measured import MEASURED, note_pair
from tests.real.pairs import Pair, sample


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-precision", action="store_true", help="write what was measured into benchmarks/ and docs/")


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """Where the checkpoints are; 2 GB, gone afterwards."""
    with TemporaryDirectory() as place:
        save_models(Path(place))
        yield Path(place)


@pytest.fixture(scope="session")
def ordinary(home: Path) -> Pair:
    """The model, and its noised copy as teacher."""
    return sample(home / "model", home / "noised", "as it is", home)


@pytest.fixture(scope="session")
def sharpened(home: Path) -> Pair:
    """The same with logits three times as large: most of its states are confident."""
    return sample(home / "model-sharp", home / "noised-sharp", "sharpened", home)


@pytest.fixture(scope="session", params=["ordinary", "sharpened"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Both of them in turn."""
    found: Pair = request.getfixturevalue(request.param)
    note_pair(found)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    if not MEASURED["rows"]:
        return
    terminalreporter.write_line(precision.as_text(MEASURED))
    if config.getoption("keep_precision", False):
        if exitstatus != 0:
            terminalreporter.write_line("Nothing was kept, since a test failed.")
            return
        precision.write(MEASURED, precision.RESULTS)
        precision.show_in(precision.DOCS, MEASURED)
