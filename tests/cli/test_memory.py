"""Out of memory, for real: the process may not have more address space than it uses, plus a little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.workspace import write_lines
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

PROBE = """
import resource, sys
import torch
torch.set_num_threads(1)
from opd_probe.cli.main import main
words = ["overlap", "--ckpts", "student", "--teacher", "teacher", "--out", "out"]
assert main([*words, "--rollouts", "short.jsonl"]) == 0
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000, resource.RLIM_INFINITY))
code = main([*words, "--rollouts", "long.jsonl", "--out", "fresh", "--k", "1", "--trace-k", "1",
             "--batch-tokens", "10000000"])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
def test_the_message_names_what_to_lower(tmp_path: Path) -> None:
    for seed, name in enumerate(("student", "teacher")):
        model = tiny_model(64, hidden=256, seed=seed, max_positions=4096)
        save_checkpoint(tmp_path / name, model, tiny_tokenizer(64))
    write_lines(tmp_path / "short.jsonl", [{"prompt_ids": [3], "response_ids": [4, 5]}])
    write_lines(tmp_path / "long.jsonl", [{"prompt_ids": [3], "response_ids": [4] * 4000}] * 25)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["2"], done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "out of memory" in line
    assert "--batch-tokens" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "fresh").exists()
