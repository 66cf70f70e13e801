"""``--teacher-template`` and its neighbours on real tiny models with chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from opd_probe.models.loading import LoadedModel
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import Trace, read_trace
from tests import reference
from tests.cli.workspace import Caller, write_lines
from tests.models.served.recorded_server import serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.tiny import CHAT_TEMPLATE, QUESTION_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORDS = [*(str(number) for number in range(48)), "<|system|>", "<|user|>", "<|assistant|>", "Q:", "A:", "<think>",
         "</think>", "be", "brief"]  # fmt: skip
SAMPLE = ("--prompts", "chat.jsonl", "--max-new-tokens", "6", "--num-rollouts", "2", "--format", "json")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a teacher whose chat templates differ; prompts with a solution that only a teacher may see."""
    root = tmp_path_factory.mktemp("chat")
    width = len(WORDS) + 3
    student, teacher = (tiny_tokenizer(words=WORDS, chat_template=text) for text in (CHAT_TEMPLATE, QUESTION_TEMPLATE))
    save_checkpoint(root / "run" / "checkpoint-5", tiny_model(width, seed=3), student, 5)
    save_checkpoint(root / "teacher", tiny_model(width, seed=1, spread=1.5), teacher)
    rows = [
        {
            "id": f"p{i}",
            "messages": [{"role": "user", "content": f"{i} {i + 1}"}],
            "answer": str(i),
            "extra_info": {"solution": f"{i + 2} {i + 3} {i + 4}"},
        }
        for i in range(3)
    ]
    write_lines(root / "chat.jsonl", rows)
    (root / "terse.jinja").write_text("{{ messages[-1]['content'] }} A:")
    return root


@pytest.fixture
def probe(call: Caller, chat: Path) -> Caller:
    """Calls the command from the directory of :func:`chat`."""
    return Caller(call.capsys, chat, call.monkeypatch)


def words(out: Path, *more: str | Path, teacher: str = "teacher") -> list[str | Path]:
    return ["overlap", "--ckpts", "run", "--teacher", teacher, *SAMPLE, "--out", out, *more]


def stored(out: Path, folder: str = "teacher") -> Trace:
    return read_trace(out / "traces" / "run" / folder / "step-5.parquet")


def ids_of(text: str) -> list[int]:
    return [3 + WORDS.index(word) for word in text.split()]


def check_against_float64(trace: Trace, out: Path, chat: Path, texts: Sequence[str]) -> None:
    """The teacher's values at every state from a pass over ids that are put together by hand."""
    model = AutoModelForCausalLM.from_pretrained(chat / "teacher", dtype=torch.float64)
    rollouts = read_rollouts(out / "rollouts" / "run" / "step-5.parquet")
    assert trace.rollouts.column("teacher_prompt_length").to_pylist() == [
        len(ids_of(texts[i // 2])) for i in range(len(rollouts))
    ]
    row = 0
    for index, rollout in enumerate(rollouts):
        before = ids_of(texts[index // 2])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *rollout.response_ids]])).logits[0].numpy()
        for position, token in enumerate(rollout.response_ids):
            q = reference.log_softmax(logits[len(before) - 1 + position])
            assert trace.column("token_id")[row] == token
            assert trace.column("teacher_logprob")[row] == pytest.approx(q[token], abs=1e-4)
            assert trace.column("teacher_entropy")[row] == pytest.approx(reference.entropy(q), abs=1e-4)
            row += 1
    assert row == trace.n_states


def test_templates_and_contexts_are_compared(probe: Caller, chat: Path, tmp_path: Path) -> None:
    context = ("--teacher-context", "student", "--teacher-context", "extra_info.solution")
    done = probe(*words(tmp_path, "--teacher-template", "student", "--teacher-template", "own", *context))
    assert done.code == 0, done.err
    assert not done.errors[:-1]
    names = ["teacher", "teacher (context solution)", "teacher (own)", "teacher (own, context solution)"]
    assert [row["teacher"] for row in done.rows] == names
    assert len({row["reverse_kl"] for row in done.rows}) == 4
    assert len({row["student_entropy"] for row in done.rows}) == 1  # the student read one prompt, and ran once
    folders = ["teacher", "teacher__context_solution_", "teacher__own_", "teacher__own__context_solution_"]
    traces = [stored(tmp_path, folder) for folder in folders]
    for trace in traces[1:]:
        for name in ("token_id", "position", "student_logprob", "student_entropy"):
            np.testing.assert_array_equal(trace.column(name), traces[0].column(name))
    texts = [
        [f"<|user|> {i} {i + 1} {i + 2} {i + 3} {i + 4} <|assistant|>" for i in range(3)],
        [f"Q: {i} {i + 1} A:" for i in range(3)],
        [f"Q: {i} {i + 1} {i + 2} {i + 3} {i + 4} A:" for i in range(3)],
    ]
    for trace, text in zip(traces[1:], texts, strict=True):
        check_against_float64(trace, tmp_path, chat, text)
    assert "teacher_prompt_length" not in traces[0].rollouts.column_names
    assert traces[0].provenance["teacher_prompt"] is None
    read = traces[3].provenance["teacher_prompt"]
    assert (read["template"], read["system"], read["thinking"]) == ("own", None, None)
    assert read["context"] == "extra_info.solution"
    assert read["template_sha256"] != traces[3].provenance["template_sha256"]
    assert traces[1].provenance["teacher_prompt"]["template_sha256"] == traces[3].provenance["template_sha256"]
    shown = probe("show", traces[3].path or "", "--format", "json")
    assert json.loads(shown.out)["provenance"]["labels"]["teacher"] == names[3]
    page = probe("tokens", traces[3].path or "", "--out", tmp_path / "page", "--format", "json")
    assert "The teacher's prompts: those here are the student's" in page.out
    again = probe("mass", "--traces", tmp_path, "--out", tmp_path / "mass", "--format", "csv")
    assert all(name in again.out for name in names)
    sides = [tmp_path / "traces" / "run" / folder for folder in folders[:2]]
    contrast = probe("compare", *sides, "--out", tmp_path / "compare", "--format", "json")
    assert contrast.code == 0, contrast.err
    by_name = {row["metric"]: row for row in contrast.rows}
    assert (by_name["reverse_kl"]["teacher_a"], by_name["reverse_kl"]["teacher_b"]) == (names[0], names[1])
    apart = traces[1].column("reverse_kl").mean() - traces[0].column("reverse_kl").mean()
    assert by_name["reverse_kl"]["difference"] == pytest.approx(apart, rel=1e-5)
    assert by_name["student_entropy"]["difference"] == 0.0  # of the same states, which the student read alike


def test_thinking_and_system_in_a_sequential_run(probe: Caller, chat: Path, tmp_path: Path) -> None:
    options = ("--teacher-template", "own", "--teacher-thinking", "off", "--teacher-system", "be brief")
    done = probe(*words(tmp_path, *options, "--sequential"))
    assert [row["teacher"] for row in done.rows] == ["teacher (own, system be brief, thinking off)"]
    texts = [f"be brief Q: {i} {i + 1} A: <think> </think>" for i in range(3)]
    check_against_float64(stored(tmp_path, "teacher__own__system_be_brief__thinking_off_"), tmp_path, chat, texts)


def test_the_students_template_by_another_name_gives_the_same_numbers(probe: Caller, tmp_path: Path) -> None:
    options = ("--teacher-template", "student", "--teacher-template", "run/checkpoint-5")
    assert [row["teacher"] for row in probe(*words(tmp_path, *options)).rows] == ["teacher", "teacher (checkpoint-5)"]
    plain, named = stored(tmp_path), stored(tmp_path, "teacher__checkpoint-5_")
    for name in plain.columns:
        np.testing.assert_array_equal(named.column(name), plain.column(name), err_msg=name)


def test_self_distillation_loads_one_model(probe: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opd_probe.jobs import pool
    from opd_probe.models import loading

    loads: list[str] = []

    def counting(source: Any, **options: Any) -> LoadedModel:
        loads.append(source.path)
        return loading.load_model(source, **options)

    monkeypatch.setattr(pool, "load_model", counting)
    context = ("--teacher-context", "student", "--teacher-context", "The answer is {answer}")
    done = probe(*words(tmp_path, *context, teacher="run/checkpoint-5"))
    assert len(loads) == 1
    plain, told = done.rows
    assert (plain["teacher"], told["teacher"]) == ("run/checkpoint-5", "run/checkpoint-5 (context answer)")
    assert (plain["reverse_kl"], plain["overlap_ratio"]) == (0, 1)
    assert told["reverse_kl"] > 1e-3


def test_what_is_stored_is_used_again_while_the_teacher_reads_the_same(
    probe: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[-1]['content'] }} A:")
    first = probe(*words(tmp_path, "--teacher-template", template))
    with monkeypatch.context() as patched:
        patched.setattr("opd_probe.jobs.pool.load_model", None)
        assert probe(*words(tmp_path, "--teacher-template", template)).rows == first.rows
    template.write_text("{{ messages[-1]['content'] }} Q:")
    changed = probe(*words(tmp_path, "--teacher-template", template))
    assert "teacher prompts changed since it was made" in changed.err
    assert changed.rows[0]["reverse_kl"] != first.rows[0]["reverse_kl"]


def test_stored_samples_take_what_the_prompts_say_today(
    probe: Caller, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that carry nothing, as older releases stored them, and a field that came later: none is drawn anew."""
    first = probe(*words(tmp_path))
    (file,) = (tmp_path / "rollouts").rglob("*.parquet")
    carried = read_rollouts(file)[0]
    assert carried.extra["messages"] == [{"role": "user", "content": "0 1"}]
    assert carried.extra["extra_info"] == {"solution": "2 3 4"}
    pq.write_table(pq.read_table(file).drop_columns(["messages", "extra"]), file)
    rows = [{**json.loads(line), "hint": "7"} for line in (chat / "chat.jsonl").read_text().splitlines()]
    prompts = write_lines(tmp_path / "hints.jsonl", rows)
    monkeypatch.setattr("opd_probe.jobs.sampling.sample_rollouts", None)
    more = ("--prompts", str(prompts), "--teacher-context", "student", "--teacher-context", "hint")
    done = probe(*words(tmp_path, *more))
    assert done.code == 0, done.err
    assert done.rows[0] == first.rows[0]
    assert [row["teacher"] for row in done.rows] == ["teacher", "teacher (context hint)"]


def test_samples_carry_what_a_teacher_may_read(probe: Caller, tmp_path: Path) -> None:
    """From ``opd-probe rollout`` through ``--rollouts``: the numbers of sampling and replaying at once."""
    file = tmp_path / "samples.jsonl"
    probe("rollout", "--ckpts", "run", *SAMPLE, "--teacher", "teacher", "--out", file)
    options = ("--teacher-template", "own", "--teacher-context", "extra_info.solution")
    replayed = probe("overlap", "--ckpts", "run", "--teacher", "teacher", "--rollouts", file, "--format", "json",
                     "--out", tmp_path / "a", *options)  # fmt: skip
    sampled = probe(*words(tmp_path / "b", *options))
    assert replayed.rows[0]["reverse_kl"] == pytest.approx(sampled.rows[0]["reverse_kl"], rel=1e-6)


def test_a_manifest_says_what_the_teachers_read_and_the_command_line_wins(
    probe: Caller, chat: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint-5").symlink_to(chat / "run" / "checkpoint-5")
    (run / "brief.txt").write_text("be brief\n")
    (run / "opd-probe.yaml").write_text(
        f"teacher: {chat / 'teacher'}\nprompts: {chat / 'chat.jsonl'}\nteacher_template: [student, own]\n"
        "teacher_thinking: off\nteacher_system: brief.txt\nmax_new_tokens: 4\nformat: json\n"
    )
    given = ("overlap", "--ckpts", run, "--out", tmp_path / "out")
    refused = probe(*given)
    (line,) = refused.errors
    assert refused.code == 2
    assert "--teacher-thinking: the chat template" in line
    assert "checkpoint-5 says the same with and without thinking" in line
    assert not (tmp_path / "out").exists()
    done = probe(*given, "--teacher-template", "own")
    assert [row["teacher"] for row in done.rows] == ["teacher (own, system be brief, thinking off)"]


def test_a_dry_run_counts_what_each_teacher_reads(probe: Caller, tmp_path: Path) -> None:
    options = ("--teacher-template", "student", "--teacher-template", "own", "--dry-run")
    plain, own, total = probe(*words(tmp_path / "out", *options)).rows
    assert (plain["tokens"], own["tokens"]) == (3 * 2 * (4 + 6), 3 * 2 * (4 + 6))
    longer = probe(*words(tmp_path / "out", *options, "--teacher-context", "extra_info.solution")).rows
    assert [row["tokens"] for row in longer[:2]] == [3 * 2 * (7 + 6)] * 2
    assert total["tokens"] == plain["tokens"] + own["tokens"]
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_not_what_the_student_read_are_said(probe: Caller, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1 2"}]
    ids = [ids_of("<|user|> 1 2 <|assistant|>"), ids_of("<|system|> be brief <|user|> 1 2 <|assistant|>")]
    rows = [
        {"id": f"r{i}", "prompt_ids": one, "response_ids": [5, 6], "messages": messages} for i, one in enumerate(ids)
    ]
    file = write_lines(tmp_path / "r.jsonl", rows)
    given = ("overlap", "--ckpts", "run", "--teacher", "teacher", "--rollouts", file, "--out", tmp_path / "out")
    done = probe(*given, "--teacher-system", "5 6")
    assert "warning: run run, teacher teacher (system 5 6): the student's chat template does not make of" in done.err
    assert "(1 of 2 prompts, the first that of rollout 'r1')" in done.err
    assert "chat template" not in probe(*given, "--teacher-template", "own").err


def test_a_template_that_refuses_what_the_student_read_may_take_what_the_teacher_reads(
    probe: Caller, chat: Path, tmp_path: Path
) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    tiny_tokenizer(words=WORDS, chat_template=strict).save_pretrained(chat / "strict")
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "1 2"}]
    file = write_lines(tmp_path / "r.jsonl", [{"prompt_ids": [3], "response_ids": [5, 6], "messages": messages}])
    given = ("overlap", "--ckpts", "run", "--teacher", "teacher", "--rollouts", file, "--tokenizer", "strict")
    done = probe(*given, "--teacher-system", "", "--out", tmp_path / "out", "--format", "json")
    assert done.rows[0]["teacher"] == "teacher (no system)"
    assert "(1 of 1 prompts, the first that of rollout '0')" in done.err


PLAIN = {"prompt_ids": [3, 4], "response_ids": [5, 6]}
CASES: dict[str, tuple[list[Any], list[str], list[str]]] = {
    "ids alone": ([PLAIN], ["--teacher-template", "own"], ["rollout '0'", "no chat messages (only token ids)"]),
    "no such template": ([PLAIN], ["--teacher-template", "n.jinja"], ["--teacher-template n.jinja: no such path"]),
    "no such mode": ([PLAIN], ["--teacher-thinking", "maybe"], ["--teacher-thinking maybe: expected on, off, student"]),
    "no such system": ([PLAIN], ["--teacher-system", "a/b.txt"], ["--teacher-system a/b.txt: no such file"]),
    "no such field": (
        [{**PLAIN, "messages": [{"role": "user", "content": "1"}], "hint": "x"}],
        ["--teacher-context", "solution"],
        ["rollout '0': no field 'solution'", "it has hint"],
    ),
    "binary template": ([PLAIN], ["--teacher-template", "binary.jinja"], ["binary.jinja: not UTF-8 text"]),
    "no template there": ([PLAIN], ["--teacher-template", "plain"], ["the tokenizer of plain has no chat template"]),
    "no tokenizer there": ([PLAIN], ["--teacher-template", "."], ["tokenizer .: the directory has no tokenizer files"]),
    "too long": (
        [{**PLAIN, "messages": [{"role": "user", "content": "1"}], "hint": "1 " * 130}],
        ["--teacher-context", "hint"],
        ["rollout '0': the teacher's prompt and response need 134 positions", "128"],
    ),
    "beside traces": ([], ["--traces", "x", "--teacher-template", "own"], ["--teacher-template and --traces"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(probe: Caller, chat: Path, tmp_path: Path, case: str) -> None:
    rows, options, parts = CASES[case]
    (chat / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    tiny_tokenizer(words=WORDS).save_pretrained(chat / "plain")
    given: list[str | Path] = ["overlap", *options, "--out", tmp_path / "out"]
    if rows:
        rollouts = write_lines(tmp_path / "r.jsonl", rows)
        given += ["--ckpts", "run", "--teacher", "teacher", "--rollouts", rollouts]
    done = probe(*given)
    (line,) = done.errors
    assert (done.code, done.out) == (2, "")
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_samples_that_would_outgrow_the_teacher_are_refused_before_they_are_drawn(
    probe: Caller, tmp_path: Path
) -> None:
    long = write_lines(
        tmp_path / "long.jsonl", [{"messages": [{"role": "user", "content": "1 2"}], "hint": "3 " * 120}]
    )
    done = probe(*words(tmp_path / "out", "--prompts", str(long), "--teacher-context", "hint"))
    (line,) = done.errors
    assert done.code == 2
    assert "prompts of up to 124 tokens and 6 new ones need more than the 128 positions of teacher" in line
    assert not (tmp_path / "out").exists()


def test_a_served_teacher_reads_prompts_of_its_own_too(probe: Caller, chat: Path, tmp_path: Path) -> None:
    """What a server tells behind them is what the same weights say here."""
    options = ("--teacher-template", "student", "--teacher-template", "own", "--teacher-context", "answer")
    model = AutoModelForCausalLM.from_pretrained(chat / "teacher")
    with serving(SGLangAnswers(model)) as server:
        given = words(tmp_path, *options, "--teacher-tokenizer", "teacher", "--trace-k", "16", teacher=server.url)
        done = probe(*given)
    assert done.code == 0, done.err
    assert [row["teacher"] for row in done.rows] == ["tiny (context answer)", "tiny (own, context answer)"]
    probe(*words(tmp_path, *options, "--trace-k", "16"))
    for name in ("context_answer", "own__context_answer"):
        served, local = (stored(tmp_path, f"{teacher}__{name}_") for teacher in ("tiny", "teacher"))
        for column in ("token_id", "student_logprob"):
            np.testing.assert_array_equal(served.column(column), local.column(column))
        np.testing.assert_allclose(served.column("teacher_logprob"), local.column("teacher_logprob"), atol=1e-4)
        assert served.provenance["teacher_prompt"] == local.provenance["teacher_prompt"]
