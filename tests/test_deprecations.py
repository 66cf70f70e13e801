"""That a deprecated call of ours fails a test, and one that libraries make of each other does not."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from transformers import Qwen2Config

from tests.deprecations import listening
from tests.tiny import save_checkpoint, tiny_model

GONE = "this name is deprecated"


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning])
def test_a_warning_that_names_us_is_raised(category: type[Warning]) -> None:
    with pytest.raises(category, match=GONE):
        warnings.warn(GONE, category, stacklevel=1)


def test_a_warning_that_names_a_library_is_not(recwarn: pytest.WarningsRecorder) -> None:
    warnings.warn_explicit(GONE, FutureWarning, "frame.py", 1, module="pandas.core.frame")
    assert [str(one.message) for one in recwarn] == [GONE]


def library(name: str, source: str) -> dict[str, object]:
    """Code of a package of that name, which is not ours."""
    space: dict[str, object] = {"__name__": name, "warnings": warnings, "logging": logging}
    exec(source, space)
    return space


SOURCE = f"""
def warns(): warnings.warn({GONE!r}, FutureWarning)
def logs(): logging.getLogger("transformers.some").warning({GONE!r})
def calls(other): other()
"""


@pytest.mark.parametrize("how", ["warns", "logs"])
@pytest.mark.filterwarnings("always:this name:FutureWarning")
def test_what_names_nobody_is_heard_where_the_call_is_ours(how: str, deprecated_calls: list[str]) -> None:
    one, other = library("transformers.some", SOURCE), library("peft.other", SOURCE)
    other["calls"](one[how])  # type: ignore[operator]
    one["calls"](other["warns"])  # type: ignore[operator]
    assert deprecated_calls == []
    one[how]()  # type: ignore[operator]
    (line,) = deprecated_calls
    assert line.startswith("transformers, called by tests.test_deprecations: ")
    assert line.endswith(GONE)
    deprecated_calls.clear()


def test_what_transformers_says_once_is_heard_in_every_test(tmp_path: Path, deprecated_calls: list[str]) -> None:
    save_checkpoint(tmp_path, tiny_model())
    for _ in range(2):
        with listening() as heard:
            Qwen2Config.from_pretrained(tmp_path).torch_dtype  # noqa: B018
        (line,) = heard
        assert "`torch_dtype` is deprecated" in line
    deprecated_calls.clear()
