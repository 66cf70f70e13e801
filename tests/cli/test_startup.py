"""The command starts at once: help and usage errors import nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from opd_probe.cli.main import app
from tests.cli.workspace import Caller, run_command

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "pyarrow", "numpy", "httpx")

PROBE = """
import sys
from opd_probe.cli.main import main
codes = [main([]), main(["--help"]), main(["overlap", "--help"]), main(["overlap", "--nope"]), main(["--version"])]
print("\\n".join(["HEAVY"] + [name for name in {heavy!r} if name in sys.modules]))
print(codes)
"""


def test_help_and_usage_errors_import_nothing_heavy() -> None:
    code = PROBE.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, codes = done.stdout.split("HEAVY\n")[1].strip().splitlines()[:-1], done.stdout.splitlines()[-1]
    assert heavy == []
    assert codes == "[2, 0, 0, 2, 0]"


def test_traces_are_read_without_torch(call: Caller, tmp_path: Path) -> None:
    done = call("overlap", "--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--rollouts", "rollouts.jsonl",
                "--out", tmp_path / "out", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    code = (
        "import sys; from opd_probe.cli.main import main; "
        f"code = main(['mass', '--traces', {str(tmp_path / 'out')!r}, '--out', {str(tmp_path / 'two')!r}]); "
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == "0 False False"
    assert (tmp_path / "two" / "mass.csv").is_file()


def test_version_and_help_in_a_process_of_their_own(tmp_path: Path) -> None:
    assert run_command(["--version"], tmp_path).out.strip() == version("opd-probe")
    shown = run_command(["overlap", "--help"], tmp_path)
    assert shown.code == 0
    assert "--ckpts" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("name", [*COMMANDS])
def test_help_has_every_option_whole_at_80_columns(call: Caller, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(name, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    shown_params = [one for one in COMMANDS[name].params if not getattr(one, "hidden", False)]
    for option in (option for one in shown_params for option in one.opts if option.startswith("--")):
        assert re.search(rf"{option}[ ,\n]", shown)
    whole = " ".join(call("--help").out.split())
    assert " ".join((COMMANDS[name].help or "").split("\n\n")[0].split()) in whole


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["overlap", "--nope"], "No such option: --nope"),
        (["overlap", "--k", "many"], "--k"),
        (["overlap", "runs/x", "y"], "runs/x y: which option is this for? Checkpoints and runs go after --ckpts"),
        (["show", "one", "two"], "two"),
        (["overlap", "--ckpts"], "--ckpts: expected at least one path"),
        (["overlap", "--format", "xml"], "--format"),
        (["nothing"], "nothing"),
        (["show"], "TRACE"),
    ],
)
def test_usage_errors_are_one_line(call: Caller, words: list[str], part: str) -> None:
    done = call(*words)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert part in line
