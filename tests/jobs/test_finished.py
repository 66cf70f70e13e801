"""A job that is done is known to be done by files alone; whatever decides a trace makes it be looked at again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd_probe.cli.main import main
from opd_probe.jobs.finished import job_key, stored_job
from opd_probe.jobs.plan import make_plan
from opd_probe.models import remembered
from opd_probe.models.remembered import remembering
from opd_probe.options.request import Request
from tests.cli.workspace import build, write_lines

REPLAY = ("--ckpts", "runs/good", "--teacher", "teacher", "--rollouts", "rollouts.jsonl", "--out", "out")
SAMPLE = ("--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--prompts", "prompts.jsonl",
          "--num-rollouts", "1", "--max-new-tokens", "3", "--out", "sampled")  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which both jobs have run."""
    root = build(tmp_path_factory.mktemp("finished"))
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main(["overlap", *REPLAY]) == main(["overlap", *SAMPLE]) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def place(done: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The process is there, and its files are afterwards what they were, times of change included."""
    monkeypatch.chdir(done)
    assert stored(sampled=False)
    assert stored(sampled=True)
    before = {path: (path.read_bytes(), path.stat()) for path in sorted(done.rglob("*")) if path.is_file()}
    yield done
    for path in sorted(done.rglob("*")):
        if path.is_file() and path not in before:
            path.unlink()
    for path, (content, state) in before.items():
        if not path.is_file() or path.read_bytes() != content or path.stat().st_mtime_ns != state.st_mtime_ns:
            path.write_bytes(content)
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def stored(*, sampled: bool, **options: object) -> bool:
    source = {"prompts": "prompts.jsonl"} if sampled else {"rollouts": "rollouts.jsonl"}
    ckpts, out = ("runs/good/checkpoint-5", "sampled") if sampled else ("runs/good", "out")
    drawn = {"num_rollouts": 1, "max_new_tokens": 3} if sampled else {}
    request = Request(ckpts=(ckpts,), teachers=("teacher",), options=drawn | options, out=out, **source)
    plan = make_plan(request)
    return stored_job(plan, job_key(plan)) is not None


def flip(file: str, place: int = -40) -> None:
    """Another byte in a file, under its old time of change."""
    path = Path(file)
    state, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES: dict[str, Callable[[], object]] = {
    "a student's tokenizer": lambda: Path("runs/good/checkpoint-20/tokenizer_config.json").write_text("{}"),
    "a chat template": lambda: Path("runs/good/checkpoint-20/chat_template.jinja").write_text("{{ messages }}"),
    "what ends a response": lambda: Path("runs/good/checkpoint-5/generation_config.json").write_text("{}"),
    "the teacher's configuration": lambda: write_lines(Path("teacher/config.json"), [{}]),
    "the rollouts": lambda: write_lines(Path("rollouts.jsonl"), [{"prompt_ids": [3], "response_ids": [4]}]),
    "results beside them": lambda: Path("results_1.json").write_text("{}"),
    "a trace": lambda: flip("out/traces/good/teacher/step-20.parquet"),
    "a trace that is gone": lambda: Path("out/traces/good/teacher/step-20.parquet").unlink(),
    "the record": lambda: [file.write_text("[") for file in Path("out/.finished").iterdir()],
}


@pytest.mark.parametrize("what", list(CHANGES))
@pytest.mark.usefixtures("place")
def test_what_decides_a_trace_is_looked_at_again(what: str) -> None:
    CHANGES[what]()
    assert not stored(sampled=False)


@pytest.mark.usefixtures("place")
def test_what_no_trace_depends_on() -> None:
    assert stored(sampled=False, k=4, average="rollout", batch_tokens=64)
    assert not stored(sampled=False, temperature=2.0)
    assert not stored(sampled=False, trace_k=20)
    assert not stored(sampled=True, seed=1)
    Path("sampled/rollouts/good/step-5.parquet").unlink()
    assert not stored(sampled=True)


@pytest.mark.usefixtures("place")
def test_no_library_of_models_is_imported_and_all_is_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["overlap", "--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--rollouts", "rollouts.jsonl",
             "--k", "1", "--out", "again", "--format", "json"]  # fmt: skip
    capsys.readouterr()
    assert main(words) == 0
    first = capsys.readouterr()
    code = (
        "import sys; from opd_probe.cli.main import main; "
        f"code = main({words!r}); print(code, *[name in sys.modules for name in ('torch', 'transformers')])"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == "0 False False"
    assert again.stdout.splitlines()[:-1] == first.out.splitlines()
    said = [[line for line in text.splitlines() if line.startswith("warning")] for text in (first.err, again.stderr)]
    assert said[0] == said[1]
    assert said[0]


def test_digests_of_large_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "SMALL", 10)
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 4000)
    os.utime(file, (1e9, 1e9))
    whole = remembered.file_digest(file)
    read = []
    monkeypatch.setattr(remembered, "_whole", lambda path: read.append(path) or whole)
    for _ in range(2):
        with remembering(tmp_path):
            assert remembered.file_digest(file) == whole
    assert read == [file]
    flip(str(file), 0)  # overwritten in place, under its old time
    with remembering(tmp_path):
        remembered.file_digest(file)
    assert read == [file, file]
    os.utime(file)  # changed just now: the next change might be of the same tick
    for _ in range(2):
        with remembering(tmp_path):
            remembered.file_digest(file)
    assert len(read) == 4
    (tmp_path / remembered.FILE).write_text('{"a": [1]')
    with remembering(tmp_path):
        remembered.file_digest(file)
    assert len(read) == 5
