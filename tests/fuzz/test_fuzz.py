"""A small slice of ``make fuzz``, and that it leaves no reader out."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import pytest

from opd_probe.models.formats import FORMATS
from opd_probe.models.served.dialects import DIALECTS
from opd_probe.rollouts.sources import SOURCES
from opd_probe.runs.training_logs import FORMATS as LOGS
from tests.fuzz.cases import SECRET, case, judge
from tests.fuzz.readers import readers

INPUTS = 12
"""Of each reader; those that load a model get fewer."""

READERS = readers()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is but what a case puts there, in a process as ``make fuzz`` makes it."""
    (tmp_path / "scratch" / "tmp").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch" / "tmp"))
    monkeypatch.setenv("OPD_PROBE_API_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path / "scratch")
    return tmp_path / "scratch"


@pytest.mark.parametrize("reader", READERS, ids=[reader.name for reader in READERS])
def test_hostile_input_is_read_or_refused_in_a_line(reader, scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = reader.seeds(tmp_path / "seeds")
    was_read, count = 0, 4 if reader.name.startswith("models") else INPUTS
    for number in range(count):
        read, fault = judge(reader, case(reader, seeds, 0, number), scratch)
        assert fault is None, f"input {number}: {fault.signature}\n{fault.text}"
        was_read += read
    assert judge(reader, seeds[0], scratch) == (True, None) or reader.name.startswith(("checkpoints", "logs:"))
    assert os.listdir(scratch) == ["tmp"]  # noqa: PTH208


def test_every_declared_reader_is_fuzzed() -> None:
    """What others add to a table needs files here."""
    names = {reader.name for reader in READERS}
    declared = {f"rollouts:{source.name}" for source in SOURCES} | {f"served:{name}" for name in DIALECTS}
    declared |= {f"checkpoints:{known.name}" for known in FORMATS}
    declared |= {f"logs:{known.name}" for known in LOGS}
    assert declared <= names, f"without files in tests/fuzz: {sorted(declared - names)}"
