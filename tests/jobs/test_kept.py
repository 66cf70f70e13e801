"""Many checkpoints over the same rollouts: a teacher runs once, and every trace is that of a replay by itself."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.engine import stored
from opd_probe.errors import OpdProbeError, OpdProbeWarning
from opd_probe.jobs.pipeline import measure
from opd_probe.jobs.plan import make_plan
from opd_probe.models.loading import LoadedModel
from opd_probe.options.request import PromptOptions, Request
from opd_probe.progress import Silent
from opd_probe.runs.stored import Measured
from tests.tiny import QUESTION_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORDS = [*(str(number) for number in range(58)), "Q:", "A:", "more"]
WIDTH = len(WORDS) + 3
STEPS = (1, 2, 10)
Read = Counter[str]


def _rows() -> list[dict[str, Any]]:
    """Of many lengths, two to a prompt; some without a state, some masked in part."""
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(12):
        length = 0 if index == 4 else 2 + 3 * (index % 5)
        asked = " ".join(str(number) for number in range(index // 2, 2 * (index // 2) + 1))
        row = {
            "id": f"r{index}",
            "messages": [{"role": "user", "content": asked}],
            "prompt_ids": [3 + WORDS.index(word) for word in f"Q: {asked} A:".split()],
            "hint": "more " * (3 + index),
            "response_ids": draw.integers(3, 60, length).tolist(),
        }
        if index in (5, 6):
            row["response_mask"] = [int(index == 6 and place % 2 == 0) for place in range(length)]
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of three checkpoints, two teachers, and rollouts in several forms."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("kept")
    tokenizer = tiny_tokenizer(words=WORDS, chat_template=QUESTION_TEMPLATE)
    for seed, step in enumerate(STEPS, start=1):
        model = tiny_model(WIDTH, seed=seed, dtype=torch.bfloat16)
        save_checkpoint(root / "run" / f"checkpoint-{step}", model, tokenizer, step)
    save_checkpoint(root / "one", tiny_model(WIDTH, seed=7, dtype=torch.bfloat16), tokenizer)
    save_checkpoint(root / "two", tiny_model(WIDTH, seed=8, hidden=48, tied=False), tokenizer)
    rows = _rows()
    texts = [
        {"id": one["id"], "prompt": " ".join(WORDS[i - 3] for i in one["prompt_ids"]),
         "response": " ".join(WORDS[i - 3] for i in one["response_ids"]) or "7"}
        for one in rows
    ]  # fmt: skip
    stepped = [{**one, "id": f"{one['id']}/{step}", "step": step} for one in rows for step in STEPS]
    for name, some in (("rows", rows), ("texts", texts), ("stepped", stepped)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    yield root
    torch.set_num_threads(before)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Tokens that went through each model, by the name of its directory."""
    seen: Read = Counter()
    hidden = LoadedModel.hidden

    def counting(self: LoadedModel, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
        seen[Path(self.name).name] += input_ids.numel()
        return hidden(self, input_ids, shared)

    monkeypatch.setattr(LoadedModel, "hidden", counting)
    return seen


@pytest.fixture(scope="module")
def whole(home: Path) -> list[Measured]:
    """A job of both teachers that nothing disturbed."""
    return _measured(home, home / "whole", teachers=("one", "two"))


class Interrupting(Silent):
    """Ctrl-C in the middle of a replay, when so many tasks of that kind have begun."""

    def __init__(self, task: str, number: int) -> None:
        self.task, self.left, self.inside = task, number, False

    def begin(self, task: str) -> None:
        self.inside = task.startswith(self.task)
        self.left -= self.inside

    def update(self, done: int, total: int) -> None:
        if self.inside and self.left == 0 and 0 < done < total:
            raise KeyboardInterrupt


def _measured(
    home: Path,
    out: Path,
    ckpts: Sequence[str] = ("run",),
    teachers: Sequence[str] = ("one",),
    rollouts: str = "rows",
    progress: Silent | None = None,
    **options: Any,
) -> list[Measured]:
    prompt = options.pop("prompt", PromptOptions())
    request = Request(
        ckpts=tuple(str(home / name) for name in ckpts),
        teachers=tuple(str(home / name) for name in teachers),
        teacher_prompt=prompt,
        rollouts=str(home / f"{rollouts}.jsonl"),
        options={"k": 8, "batch_tokens": 40, **options},
        out=str(out),
    )
    return measure(make_plan(request), progress or Silent())


def _content(one: Measured) -> dict[str, Any]:
    """All of a trace, but for which command made it."""
    columns = {name: one.trace.column(name).tobytes() for name in one.trace.columns}
    provenance = {name: value for name, value in one.trace.provenance.items() if name != "made_by"}
    # "unknown" where one checkpoint alone has the rollouts, and "fixed" where several have
    provenance["labels"] = {**provenance["labels"], "states": ""}
    return {**one.key, **columns, "rows": one.trace.rollouts.to_pylist(), "provenance": str(provenance)}


def _same(found: Sequence[Measured], expected: Sequence[Measured]) -> None:
    assert [_content(one) for one in found] == [_content(one) for one in expected]


def _alone(home: Path, out: Path, teachers: Sequence[str] = ("one",), **how: Any) -> list[Measured]:
    """Every trace from a job of its own, in which nothing is there to be shared."""
    found = []
    for step in STEPS:
        for teacher in teachers:
            place = out / f"alone-{step}-{teacher}"
            found += _measured(home, place, [f"run/checkpoint-{step}"], [teacher], **how)
    return found


def test_a_teacher_runs_once_for_all_checkpoints(home: Path, tmp_path: Path, read: Read) -> None:
    teachers = ["one", "two"]
    expected = _alone(home, tmp_path, teachers, jsd=True)
    alone = Counter(read)
    read.clear()
    _same(_measured(home, tmp_path / "job", teachers=teachers, jsd=True), expected)
    assert {name: alone[name] for name in teachers} == {name: len(STEPS) * read[name] for name in teachers}
    assert all(alone[f"checkpoint-{step}"] == 2 * read[f"checkpoint-{step}"] > 0 for step in STEPS)
    read.clear()
    _same(_measured(home, tmp_path / "one after the other", teachers=teachers, jsd=True, sequential=True), expected)
    assert all(alone[name] == len(STEPS) * read[name] for name in teachers)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"step-{step}.parquet" for step in STEPS}


def test_a_job_that_goes_on_has_the_same_bits(home: Path, tmp_path: Path, whole: list[Measured], read: Read) -> None:
    """Stopped in the middle of a trace; and with only some traces there, of other checkpoints and of other teachers."""
    teachers = ("one", "two")
    with pytest.raises(KeyboardInterrupt):
        _measured(home, tmp_path / "job", teachers=teachers, progress=Interrupting("replay", 3))
    assert any(path.is_dir() and path.name.endswith(".partial") for path in tmp_path.rglob("*"))
    _same(_measured(home, tmp_path / "job", teachers=teachers), whole)
    for name in ("one/step-1", "two/step-10"):
        (tmp_path / f"job/traces/run/{name}.parquet").unlink()
    read.clear()
    _same(_measured(home, tmp_path / "job", teachers=teachers), whole)
    assert set(read) == {"one", "two", "checkpoint-1", "checkpoint-10"}


def test_prompts_of_the_teachers_own(home: Path, tmp_path: Path, read: Read) -> None:
    """The student runs once per checkpoint and each variant of a teacher once at all, in batches that fit both."""
    how: dict[str, Any] = {"prompt": PromptOptions(context=("student", "hint"))}
    whole = _measured(home, tmp_path / "job", **how)
    assert len({one.trace.column("teacher_logprob").tobytes() for one in whole}) == 2
    student, teacher = read["checkpoint-1"], read["one"]
    for step in STEPS:
        alone = _measured(home, tmp_path / f"{step}", [f"run/checkpoint-{step}"], **how)
        _same(alone, [one for one in whole if one.trace.provenance["labels"]["step"] == step])
    assert (read["checkpoint-1"], read["one"]) == (2 * student, (1 + len(STEPS)) * teacher)
    shutil.copytree(tmp_path / "job", tmp_path / "again")
    for path in (tmp_path / "again").rglob("step-*.parquet"):
        if path.parent.name == whole[0].teacher:  # the first, whose batches the student went through in
            continue
        path.unlink()
    _same(_measured(home, tmp_path / "again", **how), whole)


@pytest.mark.filterwarnings("ignore:.*re-tokenised text")
@pytest.mark.parametrize(("rollouts", "times"), [("stepped", 3), ("texts", 1)])
def test_rollouts_of_each_step_and_text(home: Path, tmp_path: Path, read: Read, rollouts: str, times: int) -> None:
    """Nothing is taken for something else, and what becomes the same ids is the same."""
    expected = _alone(home, tmp_path, rollouts=rollouts)
    alone = read["one"]
    read.clear()
    _same(_measured(home, tmp_path / "job", rollouts=rollouts), expected)
    assert read["one"] == times * alone / 3


@pytest.mark.filterwarnings("ignore:.*re-tokenised text", "ignore:.*outside the shared vocabulary")
def test_text_that_another_tokenizer_reads_otherwise(home: Path, tmp_path: Path, read: Read) -> None:
    """A student whose tokenizer knows fewer words reads and visits other ids, which are the teacher's states then."""
    other = tmp_path / "few/checkpoint-3"
    save_checkpoint(other, tiny_model(WIDTH, seed=9), tiny_tokenizer(words=WORDS[:40]))
    places = ["run/checkpoint-1", str(other), "run/checkpoint-2"]
    expected = [
        one for n, some in enumerate(places) for one in _measured(home, tmp_path / f"{n}", [some], rollouts="texts")
    ]
    alone = read["one"]
    read.clear()
    found = _measured(home, tmp_path / "job", places, rollouts="texts")
    by_step = {one.step: one for one in found}
    for one in expected:
        for name in one.trace.columns:
            assert one.trace.column(name).tobytes() == by_step[one.step].trace.column(name).tobytes()
    assert len({one.trace.column("token_id").tobytes() for one in found}) == 2
    assert alone * 2 / 3 <= read["one"] < alone


def test_checkpoints_that_are_alike_or_the_teacher_itself(home: Path, tmp_path: Path, read: Read) -> None:
    for name in ("a", "b"):
        shutil.copytree(home / "run/checkpoint-1", tmp_path / f"{name}/checkpoint-1")
    wide = tiny_model(WIDTH + 8, seed=5)
    save_checkpoint(tmp_path / "wide/checkpoint-5", wide, tiny_tokenizer(words=WORDS))
    places = [*(f"{tmp_path}/{name}" for name in ("a", "b", "wide")), "one"]
    expected = [one for place in places for one in _measured(home, tmp_path / "out" / place[-3:], [place])]
    alone = read["one"]
    read.clear()
    found = {Path(one.trace.provenance["student"]["path"]): one for one in _measured(home, tmp_path / "job", places)}
    for one in expected:
        for name in one.trace.columns:
            place = Path(one.trace.provenance["student"]["path"])
            assert one.trace.column(name).tobytes() == found[place].trace.column(name).tobytes()
    assert not found[home / "one"].trace.column("reverse_kl").any()
    assert read["one"] == alone * 2 / 5  # once as the teacher of all, and once as a checkpoint


def test_a_checkpoint_that_cannot_be_loaded_in_the_middle(home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    expected = _measured(home, tmp_path / "whole", [str(run)])
    weights = run / "checkpoint-2/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OpdProbeError, match="checkpoint-2") as caught:
        _measured(home, tmp_path / "job", [str(run)])
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "job/traces").rglob("*") if path.is_file()] == ["step-1.parquet"]
    weights.write_bytes(whole)
    _same(_measured(home, tmp_path / "job", [str(run)]), expected)


@pytest.mark.parametrize("sequential", [False, True])
def test_without_room_on_the_disk_it_runs_again(
    home: Path, tmp_path: Path, whole: list[Measured], read: Read, monkeypatch: pytest.MonkeyPatch, sequential: bool
) -> None:
    monkeypatch.setattr(stored, "SHARE", 0.0)
    with pytest.warns(OpdProbeWarning, match=r"hidden states: 0\.0 GB are more than 0% .*computed again") as said:
        found = _measured(home, tmp_path / "job", sequential=sequential)
    _same(found, [one for one in whole if one.teacher == "one"])
    assert len(said) == 1
    assert read["one"] == len(STEPS) * read["checkpoint-1"] > 0
