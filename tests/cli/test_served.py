"""Served teachers and samplers through the command line: options, manifests, what is written, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import read_trace
from tests.cli.workspace import Caller
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, Fault, Served, serving
from tests.models.served.vllm_server import VLLMAnswers
from tests.tiny import save_checkpoint, tiny_tokenizer

RECORDED = {"--k": "4", "--trace-k": str(cases.K), "--format": "json"}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    save_checkpoint(root / "runs" / "a" / "checkpoint-20", cases.student(), tiny_tokenizer(cases.WIDTH), 20)
    (root / "rollouts.jsonl").write_text("\n".join(map(json.dumps, cases.rollouts())))
    prompts = [{"id": p.id, "prompt": " ".join(str(token - 3) for token in p.ids or ())} for p in cases.PROMPTS]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return root


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Exchanges.read("vllm_teacher.jsonl")) as served:
        yield served


@pytest.fixture
def ask(call: Caller, home: Path) -> Caller:
    call.directory = home
    return call


def words(**more: str | Path) -> list[str | Path]:
    given: dict[str, str | Path] = {"--ckpts": "runs/a", "--rollouts": "rollouts.jsonl", **RECORDED}
    given |= {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    return [word for pair in given.items() for word in pair]


def test_a_teachers_url_on_the_command_line(
    ask: Caller, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_PROBE_API_KEY", "sesame")
    url = server.url.replace("http://", "http://joe:hunter2@")
    done = ask("overlap", *words(teacher=f"{url}/v1", out=tmp_path / "out"))
    assert done.code == 0, done.err
    (row,) = done.rows
    assert (row["teacher"], row["n_states"], row["overlap_ratio_n"]) == ("tiny-teacher", 25, 25)
    assert row["overlap_ratio"] is not None
    for name in ("reverse_kl", "entropy_gap", "teacher_entropy", "topk_reverse_kl_student"):
        assert row[name] is None
    assert row["reverse_kl_n"] == 0
    assert row["topk_reverse_kl_student_n"] < 25
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert b"hunter2" not in content
        assert b"sesame" not in content
    assert "hunter2" not in done.out + done.err
    (file,) = (tmp_path / "out" / "traces").rglob("*.parquet")
    assert read_trace(file).provenance["teacher"]["url"] == server.url
    before = len(server.bodies(PATH))
    again = ask("overlap", *words(teacher=url, out=tmp_path / "out"))
    assert again.rows == done.rows
    assert len(server.bodies(PATH)) == before + 1  # how deep it tells; the trace is used again


def test_what_a_served_trace_draws(ask: Caller, server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ask("overlap", *words(teacher=server.url, out=out)).code == 0
    assert ask("align", "--traces", out, "--k", "4", "--out", out).code == 0
    done = ask("tokens", out, "--k", "4", "--out", out, "--format", "json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert any("the teacher's probability is unknown at" in line for line in document["missing"])
    assert document["states"]["reverse_kl"] == []
    assert "mean log p − log q" in (out / "tokens.html").read_text()
    (trace,) = (out / "traces").rglob("*.parquet")
    shown = ask("show", trace, "--k", "4", "--format", "json")
    assert json.loads(shown.out)["summary"]["reverse_kl"] is None


def test_a_teachers_url_in_the_manifest(ask: Caller, server: Served, home: Path, tmp_path: Path) -> None:
    manifest = home / "runs" / "a" / "opd-probe.yaml"
    tiny_tokenizer(cases.WIDTH).save_pretrained(home / "tokenizer")
    lines = [f"teacher: {server.url}#tiny-teacher", "teacher_tokenizer: ../../tokenizer"]
    manifest.write_text("\n".join(lines))
    try:
        done = ask("overlap", *words(out=tmp_path / "out"))
    finally:
        manifest.unlink()
    assert done.code == 0, done.err
    (file,) = (tmp_path / "out" / "traces").rglob("*.parquet")
    assert not read_trace(file).provenance["vocabulary"]["assumed"]


def test_an_interrupted_command_goes_on(ask: Caller, server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.fail(PATH, [None, None, None, *[Fault(413, b"too large")] * 9])
    done = ask("overlap", *words(teacher=server.url, out=out))
    assert done.code == 2
    (line,) = done.errors
    assert "answers 413 (too large)" in line
    assert [path.name for path in out.rglob("*.partial")] == [".step-20.parquet.partial"]
    server.fail(PATH, [])
    before = len(server.bodies(PATH))
    assert ask("overlap", *words(teacher=server.url, out=out)).code == 0
    assert len(server.bodies(PATH)) - before <= 1 + 2 + 1  # before and behind: is it the same?
    assert list(out.rglob("*.partial")) == []


def test_a_dry_run_asks_who_is_there(ask: Caller, server: Served, tmp_path: Path) -> None:
    done = ask("overlap", *words(teacher=server.url, out=tmp_path / "out"), "--dry-run")
    assert done.code == 0, done.err
    assert (done.rows[0]["teacher"], done.rows[0]["states"]) == ("tiny-teacher", 25)
    assert server.bodies(PATH) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"temperature": "0.5"}, "temperature = 0.5: a served teacher tells a part"),
        ({"k": "21", "trace_k": "64"}, "k = 21: tiny-teacher at SERVER tells the top 20 at most; lower --k, or start"),
        ({"teacher": "SERVER#nope"}, "server SERVER#nope: has no model 'nope'; it has tiny-teacher"),
        ({"teacher": "http://joe:hunter2@h:port"}, "server http://h:port: is not a whole URL"),
        ({"base": "http://joe:hunter2@h"}, "--base http://h: no such path, and not a hub id"),
        ({"ckpts": "http://joe:hunter2@h/"}, "--ckpts http://h/: no such path"),
        ({"teacher": "runs/a/checkpoint-20", "teacher_tokenizer": "runs"}, "--teacher-tokenizer: no teacher is served"),
        ({"sampler": "nothing"}, "option --sampler: expected 'transformers' or 'vllm'"),
    ],
)
def test_refused_in_one_line(ask: Caller, server: Served, tmp_path: Path, more: dict[str, str], said: str) -> None:
    given = {name: value.replace("SERVER", server.url) for name, value in {"teacher": "SERVER", **more}.items()}
    done = ask("overlap", *words(**given, out=tmp_path / "out"))
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith(f"error: {said.replace('SERVER', server.url)}")
    assert "hunter2" not in done.err
    assert not (tmp_path / "out").exists()


def probabilities(entries: list[Any]) -> None:
    for value in (value for entry in entries[1:] for value in entry.values()):
        value["logprob"] = math.exp(value["logprob"])


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lists of text": (lambda a: a["choices"][0].update(prompt_logprobs=["x"] * 99), "is not a list of"),
    "no choice": (lambda a: a.update(choices=None), "has no choices, or not one"),
    "ids that are a number": (lambda a: a["choices"][0].update(prompt_token_ids=7), "is missing"),
    "probabilities": (lambda a: probabilities(a["choices"][0]["prompt_logprobs"]), "--logprobs-mode raw_logprobs"),
    "nothing but nulls": (
        lambda a: a["choices"][0].update(prompt_logprobs=[None] * len(a["choices"][0]["prompt_logprobs"])),
        "told no list of log-probabilities of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_answers_are_one_line_and_leave_nothing(ask: Caller, tmp_path: Path, what: str) -> None:
    change, said = HOSTILE[what]
    answers = VLLMAnswers(cases.teacher())
    answers.change = lambda answer, _: change(answer)
    with serving(answers) as server:
        done = ask("overlap", *words(teacher=server.url, out=tmp_path / "out"))
    assert done.code == 2
    (line,) = done.errors
    assert said in line
    assert not (tmp_path / "out").exists()


def test_samples_from_a_server(ask: Caller, tmp_path: Path) -> None:
    more = {"--num-rollouts": "3", "--max-new-tokens": "8", "--seed": "5", "--prompts": "prompts.jsonl"}
    given = ["--ckpts", "runs/a", *(word for pair in more.items() for word in pair)]
    with serving(Exchanges.read("vllm_student.jsonl")) as server:
        done = ask("rollout", *given, "--sampler", server.url, "--out", tmp_path / "r.jsonl")
        assert (done.code, len(done.errors)) == (2, 1)
        assert "none of its models (tiny-student) says that it was loaded from" in done.err
        url = f"{server.url}#tiny-student"
        done = ask("rollout", *given, "--sampler", url, "--out", tmp_path / "r.jsonl", "--format", "json")
        assert done.code == 0, done.err
        assert done.rows[0]["n_rollouts"] == 6
        assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
        rollouts = read_rollouts(tmp_path / "r.jsonl")
        assert {rollout.sampler for rollout in rollouts} == {"vllm 0.32.0, served"}
        assert {rollout.step for rollout in rollouts} == {20}
        own = ["--teacher", "runs/a/checkpoint-20", "--k", "4", "--out", tmp_path / "out"]
        done = ask("overlap", *given, "--sampler", url, *own, "--format", "json")
        assert done.code == 0, done.err
        assert (done.rows[0]["states"], done.rows[0]["overlap_ratio"]) == ("own", 1.0)
        before = len(server.bodies(PATH))
        assert ask("overlap", *given, "--sampler", url, *own).code == 0
        assert len(server.bodies(PATH)) == before  # what is stored is used again
