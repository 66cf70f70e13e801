"""The public interface: light to import, and every name where it should be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import opd_probe

HEAVY = ["torch", "transformers", "pandas", "matplotlib", "pyarrow", "scipy", "seaborn"]


def loaded_after(statement: str) -> list[str]:
    """Which heavy libraries a fresh interpreter holds after a statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result: list[str] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "statement",
    ["import opd_probe", "import opd_probe; dir(opd_probe)", "import opd_probe; opd_probe.__version__"],
)
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) == []


def test_reading_and_summarising_traces_needs_no_torch() -> None:
    loaded = loaded_after("import opd_probe; opd_probe.read_trace, opd_probe.state_metrics, opd_probe.summarize")
    assert "torch" not in loaded
    assert "transformers" not in loaded


@pytest.mark.parametrize("name", opd_probe.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(opd_probe, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(opd_probe)


def test_the_names_that_are_a_contract() -> None:
    expected = {"replay", "trace_logits", "read_trace", "state_metrics", "summarize"}
    assert expected <= set(opd_probe.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = opd_probe.nothing


def test_replay_stays_the_function() -> None:
    """Submodules of the same name must not take its place, whatever is imported first."""
    code = (
        "import opd_probe.engine.replay, opd_probe.jobs.replay, opd_probe\n"
        "from opd_probe.engine.replay import Replay\n"
        "first = opd_probe.replay\n"
        "import opd_probe.engine.scoring\n"
        "assert callable(first) and first is opd_probe.replay and first.__name__ == 'replay'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
