"""``replay(..., teacher_prompts=…)`` and ``replay_teachers``: prompts of a teacher as a program gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning
from tests.tiny import QUESTION_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORDS = [*(str(number) for number in range(40)), "Q:", "A:"]
ROWS = [{"prompt_ids": [3, 4, 5 + i], "response_ids": [7 + i, 8, 9], "prompt_id": str(i)} for i in range(3)]
CHATS = [[{"role": "user", "content": f"{i} {i + 1}"}] for i in range(3)]
IDS = [[3 + WORDS.index(word) for word in f"Q: {i} {i + 1} A:".split()] for i in range(3)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher"), start=1):
        tokenizer = tiny_tokenizer(words=WORDS, chat_template=QUESTION_TEMPLATE)
        save_checkpoint(home / name, tiny_model(len(WORDS) + 3, seed=seed), tokenizer)
    return home


def equal(left: opd_probe.Trace, right: opd_probe.Trace) -> None:
    for name in left.columns:
        np.testing.assert_array_equal(right.column(name), left.column(name), err_msg=name)


def test_ids_and_messages(home: Path) -> None:
    pair: Any = home / "student", home / "teacher"
    by_ids = opd_probe.replay(*pair, ROWS, k=8, teacher_prompts=IDS)
    by_messages = opd_probe.replay(*pair, ROWS, k=8, teacher_prompts=CHATS)
    equal(by_ids, by_messages)
    assert by_ids.provenance["teacher_prompt"] == {"source": "ids"}
    assert by_messages.provenance["teacher_prompt"] == {"source": "messages"}
    assert by_ids.rollouts.column("teacher_prompt_length").to_pylist() == [4, 4, 4]
    plain = opd_probe.replay(*pair, ROWS, k=8)
    np.testing.assert_array_equal(plain.column("student_logprob"), by_ids.column("student_logprob"))
    assert np.abs(plain.column("teacher_logprob") - by_ids.column("teacher_logprob")).max() > 1e-4


def test_the_responses_as_the_teacher_alone_would_read_them(home: Path) -> None:
    """The teacher's half of the trace is that of a replay whose rollouts have the teacher's prompts."""
    rows = [{**row, "prompt_ids": ids} for row, ids in zip(ROWS, IDS, strict=True)]
    given = opd_probe.replay(home / "student", home / "teacher", ROWS, k=8, teacher_prompts=IDS)
    alone = opd_probe.replay(home / "teacher", home / "teacher", rows, k=8)
    for name in ("teacher_logprob", "teacher_entropy", "teacher_top_logprobs"):
        np.testing.assert_allclose(given.column(name), alone.column(name), atol=1e-5, err_msg=name)


def test_a_stored_trace_knows_what_its_teacher_read(home: Path, tmp_path: Path) -> None:
    pair: Any = home / "student", home / "teacher"
    first = opd_probe.replay(*pair, ROWS, k=8, out=tmp_path / "t.parquet", teacher_prompts=IDS)
    seen: list[int] = []
    again = opd_probe.replay(
        *pair, ROWS, k=8, out=tmp_path / "t.parquet", teacher_prompts=CHATS, progress=lambda done, _: seen.append(done)
    )
    assert seen == []  # the messages make the same ids
    equal(first, again)
    with pytest.warns(OpdProbeWarning, match="teacher prompts changed since it was made; made anew"):
        opd_probe.replay(*pair, ROWS, k=8, out=tmp_path / "t.parquet")


def test_several_teachers_and_one_that_is_the_student(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd_probe.jobs import replay as module

    loads: list[str] = []
    load = module.load_model

    def counting(source: Path, **how: Any) -> Any:
        loads.append(source.name)
        return load(source, **how)

    monkeypatch.setattr(module, "load_model", counting)
    teachers = {"itself": home / "student", "told": home / "student", "other": home / "teacher"}
    prompts = {"told": IDS, "other": CHATS}
    traces = opd_probe.replay_teachers(home / "student", teachers, ROWS, tmp_path, k=8, teacher_prompts=prompts)
    assert loads == ["student", "teacher"]
    assert not traces["itself"].column("reverse_kl").any()
    assert traces["told"].column("reverse_kl").min() > 0
    sequential = opd_probe.replay_teachers(
        home / "student", teachers, ROWS, k=8, teacher_prompts=prompts, sequential=True
    )
    for name, trace in traces.items():
        equal(trace, sequential[name])
    with pytest.raises(InputError, match="teacher_prompts: no teacher is called 'big'; expected some of itself, told"):
        opd_probe.replay_teachers(home / "student", teachers, ROWS, teacher_prompts={"big": IDS})


def test_refused_before_anything_is_loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd_probe.jobs.replay.load_model", None)
    with pytest.raises(InputError, match="teacher_prompts: 1 for 3 rollouts"):
        opd_probe.replay(home / "student", home / "teacher", ROWS, teacher_prompts=IDS[:1])
    with pytest.raises(InputError, match=r"rollout '0': its teacher prompt .* the teacher has no chat template"):
        opd_probe.replay(home / "student", tiny_model(), ROWS, teacher_prompts=CHATS)
