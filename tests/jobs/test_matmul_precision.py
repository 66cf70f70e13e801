"""How the process multiplies float32 matrices is kept with a trace, and decides whether it is used again."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import opd_probe
from opd_probe.engine.provenance import float32_precision, reduced_matmul_precision
from opd_probe.errors import OpdProbeWarning
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

ROLLOUTS = [Rollout(id="r", prompt_ids=(3, 4, 5), response_ids=(6, 7, 8, 9), prompt_id="p")]


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Whatever a test sets is gone after it."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("precision")
    for name, seed in (("student", 1), ("teacher", 2)):
        save_checkpoint(root / name, tiny_model(seed=seed), tiny_tokenizer(64))
    return root


def replay(home: Path, out: Path) -> Trace:
    return opd_probe.replay(home / "student", home / "teacher", ROLLOUTS, out=out, k=4)


def replay_again(home: Path, out: Path) -> Trace:
    """Without a warning that it is made anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", OpdProbeWarning)
        return replay(home, out)


@pytest.mark.usefixtures("full_precision")
def test_a_trace_of_another_precision_is_made_anew(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.parquet"
    assert replay(home, out).provenance["fingerprint"]["matmul precision"] is None
    torch.set_float32_matmul_precision("medium")
    with pytest.warns(OpdProbeWarning, match="matmul precision changed since it was made; made anew"):
        replay(home, out)
    provenance = read_trace(out).provenance
    assert provenance["fingerprint"]["matmul precision"] == "cuda tf32, cpu bf16"
    said = provenance["float32_precision"]
    assert said["float32_matmul_precision"] == "medium"
    assert said["cuda.matmul.allow_tf32"] is True
    assert said["mkldnn.matmul.fp32_precision"] == "bf16"
    replay_again(home, out)
    torch.set_float32_matmul_precision("highest")
    with pytest.warns(OpdProbeWarning, match="matmul precision changed"):
        replay(home, out)
    replay_again(home, out)


@pytest.mark.usefixtures("full_precision")
def test_a_trace_that_does_not_say_counts_as_one_in_full(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.parquet"
    older = replay(home, tmp_path / "made.parquet")
    del older.provenance["fingerprint"]["matmul precision"]
    del older.provenance["float32_precision"]
    older.save(out)
    assert "float32_precision" not in replay_again(home, out).provenance
    torch.set_float32_matmul_precision("high")
    with pytest.warns(OpdProbeWarning, match="matmul precision changed"):
        replay(home, out)


SETTINGS: list[tuple[str, str | None]] = [
    ("pass", None),
    ("torch.set_float32_matmul_precision('highest')", None),
    ("torch.backends.cuda.matmul.allow_tf32 = True", "cuda tf32"),
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "cuda tf32"),
    ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "cpu bf16"),
    ("torch.backends.fp32_precision = 'tf32'", "cuda tf32, cpu tf32"),
    ("torch.backends.fp32_precision = 'ieee'", None),
]


EACH_BY_ITSELF = """
import json, os, sys, torch
from opd_probe.engine.provenance import float32_precision, reduced_matmul_precision
for how in sys.argv[1:]:
    if os.fork() == 0:
        exec(how)
        print(json.dumps([reduced_matmul_precision(), float32_precision()]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_way_of_setting_it_is_seen() -> None:
    """In a new process each, since older and newer settings of torch do not mix; JSON holds what it says."""
    command = [sys.executable, "-W", "ignore", "-c", EACH_BY_ITSELF, *(how for how, _ in SETTINGS)]
    answers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for (how, reduced), answer in zip(SETTINGS, answers, strict=True):
        found, said = json.loads(answer)
        assert found == reduced, how
        assert set(said) == set(float32_precision()), how


@pytest.mark.usefixtures("full_precision")
def test_a_replay_leaves_it_as_it_was(home: Path) -> None:
    """Its own products of hidden states and output layer are taken in full; the backbone's as the process says."""
    torch.set_float32_matmul_precision("medium")
    before = float32_precision()
    opd_probe.replay(home / "student", home / "teacher", ROLLOUTS, k=4)
    assert float32_precision() == before
    assert reduced_matmul_precision() == "cuda tf32, cpu bf16"
