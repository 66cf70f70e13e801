"""SIGTERM and SIGHUP end a command as Ctrl-C does; what a killed process left is removed by the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from opd_probe.atomic import whole_file
from opd_probe.cli.main import main
from opd_probe.cli.signals import stopped_by_signals
from opd_probe.commands.overlap import overlap
from opd_probe.errors import InputError, TraceError
from opd_probe.options.request import Request
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller
from tests.trace.test_files import small_trace


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # of a process that nohup started it is ignored, and stays so
    before = signal.getsignal(number)

    def stop() -> None:
        received: list[int] = []
        with stopped_by_signals(received):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), number)  # while it cleans up
                assert received == [number, number]

    try:
        with pytest.raises(KeyboardInterrupt):
            stop()
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        received: list[int] = []
        with stopped_by_signals(received):
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("place", ["_show_warnings_as_lines", "spread", "_fail", "close"])
def test_a_signal_while_a_command_begins_or_ends(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == place and "opd_probe" in frame.f_code.co_filename:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)

    sys.setprofile(stop)
    try:
        assert main(["show", "/nowhere/t.parquet"]) == 143
    finally:
        sys.setprofile(None)
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted by SIGTERM; ")


def test_a_command_that_a_scheduler_ends(workspace: Path, tmp_path: Path) -> None:
    words = "overlap --ckpts runs/good --teacher teacher --rollouts rollouts.jsonl --out"
    command = [str(Path(sys.executable).with_name("opd-probe")), *words.split(), str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True)
    first, waited = tmp_path / "out/traces/good/teacher/step-5.parquet", 0.0
    while not first.is_file() and waited < 60:
        time.sleep(0.01)
        waited += 0.01
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1] == ("interrupted by SIGTERM; finished traces are kept, run the same command to resume")
    assert "Traceback" not in said
    assert read_trace(first).n_states
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """And what a living one is writing is not."""
    code = (
        "import sys, time, pathlib; from opd_probe.atomic import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as place:\n"
        "    place.write_text('half'); print('there', flush=True); time.sleep(60)"
    )
    left = []
    for name in ("dead.csv", "alive.csv"):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        left.append(process)
    left[0].kill()
    left[0].wait()
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    try:
        with whole_file(tmp_path / "other.csv") as place:
            place.write_text("whole")
        assert sorted(path.name.split(".")[1] for path in tmp_path.glob(".*.tmp")) == ["alive"]
    finally:
        left[1].terminate()
        left[1].wait()


class Removing:
    """Progress that removes the folder of the results once all is replayed."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, task: str) -> None:
        if task == "summarise":
            shutil.rmtree(self.out)

    def update(self, done: int, total: int) -> None:
        pass


def test_results_that_are_removed_meanwhile(workspace: Path, tmp_path: Path) -> None:
    given = {"teachers": (str(workspace / "teacher"),), "rollouts": str(workspace / "rollouts.jsonl")}
    request = Request(ckpts=(str(workspace / "runs/good/checkpoint-5"),), out=str(tmp_path / "out"), **given)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="no longer there") as caught:
        overlap(request, Removing(tmp_path / "out"))
    assert "\n" not in str(caught.value)


class Meanwhile:
    """Progress that does something once, when a task begins."""

    def __init__(self, task: str, act: Callable[[], object]) -> None:
        self.task, self.act = task, act

    def begin(self, task: str) -> None:
        if task.startswith(self.task):
            self.task = "nothing more"
            self.act()

    def update(self, done: int, total: int) -> None:
        pass


@pytest.fixture
def world(workspace: Path, tmp_path: Path) -> Path:
    """A workspace of one checkpoint that a test may change."""
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", tmp_path / "checkpoint-5")
    return tmp_path


def asked(workspace: Path, world: Path, **given: str) -> Request:
    more: dict[str, Any] = given or {"rollouts": str(workspace / "rollouts.jsonl")}
    return Request(
        ckpts=(str(world / "checkpoint-5"),),
        teachers=(str(workspace / "teacher"),),
        out=str(world / "out"),
        options={"max_new_tokens": 3},
        **more,
    )


def test_a_checkpoint_that_is_written_over_while_it_is_read(workspace: Path, world: Path) -> None:
    """Its numbers are not filed under what was there before."""
    for given in ({}, {"prompts": str(workspace / "prompts.jsonl")}):
        other = workspace / "runs" / ("good" if given else "bad") / "checkpoint-20" / "model.safetensors"
        over = Meanwhile("load", lambda other=other: shutil.copyfile(other, world / "checkpoint-5" / other.name))
        with pytest.raises(InputError, match=r"checkpoint-5: its files changed while they were read"):
            overlap(asked(workspace, world, **given), over)
        assert not list((world / "out").rglob("*.parquet"))


@pytest.mark.filterwarnings("ignore:4 prompts")
@pytest.mark.filterwarnings("ignore:trace .* made anew")
def test_a_checkpoint_that_goes_once_it_is_read_and_a_trace_that_goes(workspace: Path, world: Path) -> None:
    gone = Meanwhile("replay", lambda: shutil.rmtree(world / "checkpoint-5"))
    assert overlap(asked(workspace, world), gone).rows
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", world / "checkpoint-5")
    sampled = asked(workspace, world, prompts=str(workspace / "prompts.jsonl"))
    assert overlap(sampled, Meanwhile("replay", lambda: shutil.rmtree(world / "out" / "rollouts"))).rows


@pytest.mark.parametrize("out", ["s3://b/out", "hdfs://host/x", "file:///tmp/x"])
def test_an_address_is_refused_before_anything_runs(call: Caller, workspace: Path, out: str) -> None:
    given = ("--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher")
    for words in (
        ("overlap", *given, "--rollouts", "rollouts.jsonl", "--out", out),
        ("rollout", *given, "--prompts", "prompts.jsonl", "--out", f"{out}/r.jsonl"),
        ("figures", "--traces", "runs", "--out", out),
        ("compare", "a", "b", "--out", out),
        ("tokens", "a", "--out", out),
        ("ingest", "rollouts.jsonl", "--out", f"{out}.parquet"),
    ):
        done = call(*words)
        assert (done.code, done.out) == (2, "")
        (line,) = done.errors
        assert out in line
        assert "expected a path" in line
    assert not list(workspace.glob(f"{out.split('/')[0]}*"))


@pytest.mark.parametrize("out", ["exp:1", "qwen3:8b/try"])
def test_a_colon_is_a_colon(call: Caller, tmp_path: Path, out: str) -> None:
    call.directory, workspace = tmp_path, call.directory
    given = ("--ckpts", workspace / "runs/good/checkpoint-5", "--teacher", workspace / "teacher")
    sampled = ("--prompts", workspace / "prompts.jsonl", "--max-new-tokens", "4", "--out", out)
    for _ in range(2):  # made, and read again
        done = call("mass", *given, *sampled)
        assert done.code == 0, done.err
    assert (tmp_path / out / "mass.csv").is_file()


def test_a_long_text_is_a_text(tmp_path: Path, workspace: Path, call: Caller) -> None:
    """108 Chinese characters without a space, which is too long for a file's name."""
    text = "你是一位严谨的老师" * 12
    run = tmp_path / "run"
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", run / "checkpoint-5")
    (run / "opd-probe.yaml").write_text(f"teacher: {workspace}/teacher\nteacher_system: {text}\n", encoding="utf-8")
    given = ("overlap", "--ckpts", run, "--rollouts", workspace / "rollouts.jsonl", "--out", tmp_path / "out")
    for more in ((), ("--teacher-system", text)):
        done = call(*given, *more)
        assert done.code == 2  # the tiny tokenizer has no chat template: that is what is said
        (line,) = done.errors
        assert "too long" not in line
        assert "chat template" in line
    done = call(*given, "--teacher", text)
    assert done.code == 2
    assert len(done.errors) == 1


@pytest.mark.parametrize("entry", [[["step", 1], ["loss", 2]], [[1, 2]], [["a"]], 3, "text", None, [[[1], 2]]])
def test_a_log_history_of_anything_else(workspace: Path, tmp_path: Path, call: Caller, entry: object) -> None:
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.5}, entry]}))
    done = call("overlap", "--ckpts", "runs/good", "--training-log", log, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    assert "entry 1 of log_history: expected an object" in line
    assert workspace.is_dir()


@pytest.mark.parametrize("stated", ["</s>", ["</s>"], [[1]], [{"id": 1}], {"id": 1}, 1.5, True, -1])
def test_ids_of_the_end_that_are_none(workspace: Path, tmp_path: Path, call: Caller, stated: object) -> None:
    run = tmp_path / "checkpoint-5"
    shutil.copytree(workspace / "runs" / "good" / "checkpoint-5", run)
    (run / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    given = ("--teacher", "teacher", "--prompts", "prompts.jsonl", "--max-new-tokens", "4")
    done = call("overlap", "--ckpts", run, *given, "--out", tmp_path / "out")
    assert done.code == 2
    (line,) = done.errors
    assert "eos_token_id" in line


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("{} verify t.parquet --states 0 >&-", 0, ""),
        (
            "{} verify t.parquet --states 0 > /dev/full",
            2,
            "standard output: cannot be written (No space left on device)",
        ),
        ("{} --help > /dev/full", 2, "standard output: cannot be written (No space left on device)"),
        ("set -o pipefail; {} --version | true", 0, ""),
        ("{} show t.parquet 2> /dev/full > /dev/full", 2, ""),
        (
            "file=$PWD/t.parquet; mkdir x; cd x; rmdir ../x; {} mass --traces $file",
            2,
            "the working directory is no longer",
        ),
    ],
)
def test_no_place_to_print_or_to_be(tmp_path: Path, command: str, code: int, line: str) -> None:
    small_trace().save(tmp_path / "t.parquet")
    words = command.format(Path(sys.executable).with_name("opd-probe"))
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == bool(line)
