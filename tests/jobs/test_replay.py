"""The public replay(): what it accepts, when a stored trace is used again, and how an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import opd_probe
from opd_probe.errors import InputError, MissingError, OpdProbeWarning, OutputError
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with one tokenizer, and a rollout file."""
    root = tmp_path_factory.mktemp("replay")
    tokenizer = tiny_tokenizer(64)
    save_checkpoint(root / "student", tiny_model(seed=1), tokenizer, step=20)
    save_checkpoint(root / "teacher", tiny_model(seed=2, hidden=48), tokenizer)
    (root / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def rows(count: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "id": f"r{index}",
            "prompt_id": f"p{index // 2}",
            "prompt_ids": generator.integers(3, 64, 5).tolist(),
            "response_ids": generator.integers(3, 64, 4 + 5 * index).tolist(),
        }
        for index in range(count)
    ]


ROWS = rows()


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the ids of every forward pass that asks for hidden states of a batch."""
    seen: list[tuple[int, ...]] = []
    original = LoadedModel.hidden

    def hidden(self: LoadedModel, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
        seen.append(tuple(input_ids.shape))
        return original(self, input_ids, shared)

    monkeypatch.setattr(LoadedModel, "hidden", hidden)
    return seen


def same_numbers(left: Trace, right: Trace) -> None:
    assert left.columns == right.columns
    for name in left.columns:
        np.testing.assert_array_equal(left.column(name), right.column(name), err_msg=name)
    assert str(left.rollouts.to_pylist()) == str(right.rollouts.to_pylist())


def test_everything_that_names_a_model_or_rollouts(home: Path) -> None:
    student, teacher = home / "student", home / "teacher"
    expected = opd_probe.replay(student, teacher, home / "rollouts.jsonl", k=8)
    assert expected.provenance["vocabulary"]["assumed"] is False
    assert expected.provenance["student"]["step"] == 20
    assert expected.provenance["labels"] == {"states": "unknown"}
    objects = [Rollout(**row) for row in ROWS]
    for one, two, rollouts in (
        (str(student), str(teacher), ROWS),
        (resolve_checkpoint(student), resolve_checkpoint(teacher), objects),
        (load_model(student), load_model(teacher), iter(ROWS)),
    ):
        same_numbers(opd_probe.replay(one, two, rollouts, k=8), expected)
    in_memory = opd_probe.replay(tiny_model(seed=1), tiny_model(seed=2, hidden=48), ROWS, k=8)
    np.testing.assert_allclose(in_memory.column("reverse_kl"), expected.column("reverse_kl"), atol=1e-4)
    assert in_memory.provenance["vocabulary"]["assumed"] is True


def test_rollouts_of_both_kinds_are_refused(home: Path) -> None:
    mixed: Any = [Rollout(**ROWS[0]), ROWS[1]]
    with pytest.raises(InputError, match="expected all of one kind"):
        opd_probe.replay(home / "student", home / "teacher", mixed, k=4)
    sampled = Rollout(**ROWS[0])
    for other, message in ((replace(sampled, id="text", token_source="retokenized"), "never pooled"), (sampled, "ids")):
        with pytest.raises(InputError, match=message):
            opd_probe.replay(home / "student", home / "teacher", [sampled, other], k=4)


def test_k_is_capped(home: Path) -> None:
    assert opd_probe.replay(home / "student", home / "teacher", ROWS[:1], k=1000).K == 64


def test_what_came_along_is_kept(home: Path) -> None:
    row = {
        **ROWS[0],
        "step": 7,
        "score": 1,
        "finish_reason": "length",
        "logprobs": [-1.0, -2.0, None, -3.0],
        "answer": "42",
        "response_mask": [1, 0, 1, 1],
    }
    trace = opd_probe.replay(
        home / "student", home / "teacher", [row, ROWS[1]], k=4, labels={"run": "a", "states": "own"}
    )
    first, second = trace.rollouts.to_pylist()
    assert (first["step"], first["score"], first["finish_reason"], first["answer"]) == (
        7,
        1.0,
        "length",
        "42",
    )
    assert (first["prompt_length"], first["response_length"], first["n_states"]) == (5, 4, 3)
    assert second["score"] is None
    np.testing.assert_array_equal(trace.column("sampler_logprob")[:3], [-1, np.nan, -3])
    assert np.isnan(trace.column("sampler_logprob")[3:]).all()
    assert trace.column("position")[:3].tolist() == [0, 2, 3]
    assert trace.provenance["labels"] == {"states": "own", "run": "a"}


def test_prompts_without_id_are_grouped_by_their_ids(home: Path) -> None:
    given = [{**row, "prompt_ids": ROWS[index // 2]["prompt_ids"], "prompt_id": None} for index, row in enumerate(ROWS)]
    trace = opd_probe.replay(home / "student", home / "teacher", given, k=4)
    prompts = trace.rollouts.column("prompt_id").to_pylist()
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert len(set(prompts)) == 3


class TestReuse:
    def test_a_fitting_trace_runs_no_model(
        self, home: Path, tmp_path: Path, forwards: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = home / "student", home / "teacher", home / "rollouts.jsonl"
        made = opd_probe.replay(*arguments, k=8, out=tmp_path / "t.parquet")
        assert made.path == tmp_path / "t.parquet"
        assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]
        before = (tmp_path / "t.parquet").read_bytes()
        forwards.clear()
        monkeypatch.setattr("opd_probe.jobs.replay.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        for k in (8, 3):
            same_numbers(opd_probe.replay(*arguments, k=k, out=tmp_path / "t.parquet"), made)
        assert forwards == []
        assert (tmp_path / "t.parquet").read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"k": 9}, "holds the top 8, asked for are 9"),
            ({"jsd": True}, "no Jensen-Shannon divergence"),
            ({"temperature": 0.7}, "temperature"),
            ({"dtype": "bfloat16"}, "dtype"),
            ({"rollouts": ROWS[:5]}, "rollouts"),
            ({"student": "teacher"}, "student weights"),
            ({"teacher": "student"}, "teacher weights"),
        ],
    )
    def test_another_one_is_made_anew_saying_why(
        self, home: Path, tmp_path: Path, change: dict[str, Any], reason: str
    ) -> None:
        arguments: dict[str, Any] = {"student": "student", "teacher": "teacher", "rollouts": ROWS, "k": 8}
        out = tmp_path / "t.parquet"

        def run(**given: Any) -> Trace:
            models = {name: home / given.pop(name) for name in ("student", "teacher")}
            return opd_probe.replay(**models, **given, out=out)

        run(**arguments)
        with pytest.warns(OpdProbeWarning, match=rf"{reason}.*made anew"):
            anew = run(**(arguments | change))
        assert (arguments | change)["k"] == anew.K
        run(**(arguments | change))  # fits now: a warning would be an error

    def test_changed_files_are_noticed(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(64)
        save_checkpoint(tmp_path / "s", tiny_model(seed=1), tokenizer)
        save_checkpoint(tmp_path / "t", tiny_model(seed=2), tokenizer)
        out = tmp_path / "t.parquet"
        opd_probe.replay(tmp_path / "s", tmp_path / "t", ROWS[:2], k=4, out=out)
        save_checkpoint(tmp_path / "t", tiny_model(seed=3), tokenizer)
        with pytest.warns(OpdProbeWarning, match="teacher weights changed"):
            opd_probe.replay(tmp_path / "s", tmp_path / "t", ROWS[:2], k=4, out=out)
        tokenizer.add_tokens(["more"])
        tokenizer.save_pretrained(tmp_path / "s")
        with pytest.warns(OpdProbeWarning, match="student tokenizer changed"):
            opd_probe.replay(tmp_path / "s", tmp_path / "t", ROWS[:2], k=4, out=out)

    def test_models_in_memory_are_known_by_their_weights(self, tmp_path: Path, forwards: list[Any]) -> None:
        model, other, out = tiny_model(seed=1), tiny_model(seed=2), tmp_path / "t.parquet"
        opd_probe.replay(model, other, ROWS[:2], k=4, out=out)
        forwards.clear()
        opd_probe.replay(model, tiny_model(seed=2), ROWS[:2], k=4, out=out)
        assert forwards == []
        with torch.no_grad():
            other.get_output_embeddings().weight[0, 0] += 1
        with pytest.warns(OpdProbeWarning, match="teacher weights"):
            opd_probe.replay(model, other, ROWS[:2], k=4, out=out)

    def test_a_broken_trace_is_made_anew(self, home: Path, tmp_path: Path) -> None:
        out = tmp_path / "t.parquet"
        out.write_bytes(b"PAR1 not really")
        with pytest.warns(OpdProbeWarning, match="not a whole Parquet file.*made anew"):
            opd_probe.replay(home / "student", home / "teacher", ROWS[:1], k=4, out=out)
        assert read_trace(out).n_states == 4

    def test_a_damaged_trace_is_made_anew(self, home: Path, tmp_path: Path) -> None:
        """One bit in the middle, where the numbers are."""
        out = tmp_path / "t.parquet"
        made = opd_probe.replay(home / "student", home / "teacher", ROWS[:2], k=4, out=out)
        whole = out.read_bytes()
        middle = len(whole) // 2
        out.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
        with pytest.warns(OpdProbeWarning, match="damaged.*made anew"):
            again = opd_probe.replay(home / "student", home / "teacher", ROWS[:2], k=4, out=out)
        assert out.read_bytes() == whole
        same_numbers(again, made)

    def test_not_wanted(self, home: Path, tmp_path: Path, forwards: list[Any]) -> None:
        out = tmp_path / "t.parquet"
        opd_probe.replay(home / "student", home / "teacher", ROWS[:1], k=4, out=out)
        forwards.clear()
        opd_probe.replay(home / "student", home / "teacher", ROWS[:1], k=4, out=out, reuse=False)
        assert forwards


class TestInterrupted:
    def test_goes_on_where_it_stopped(self, home: Path, tmp_path: Path, forwards: list[tuple[int, ...]]) -> None:
        arguments = load_model(home / "student"), load_model(home / "teacher"), ROWS
        options: dict[str, Any] = {"k": 8, "batch_tokens": 1, "jsd": True}
        forwards.clear()
        whole = opd_probe.replay(*arguments, **options, out=tmp_path / "whole.parquet")
        assert len(forwards) == 12  # six batches of one rollout, two models
        forwards.clear()

        def stop(done: int, total: int) -> None:
            if done > total / 2:
                raise KeyboardInterrupt

        out = tmp_path / "t.parquet"
        with pytest.raises(KeyboardInterrupt):
            opd_probe.replay(*arguments, **options, out=out, progress=stop)
        assert not out.exists()
        first = len(forwards)
        assert 0 < first < 12
        again = opd_probe.replay(*arguments, **options, out=out)
        assert len(forwards) == 12
        assert first < len(forwards)
        same_numbers(again, whole)
        for column in ("student_top_ids", "reverse_kl", "rollout_id"):
            left, right = (pq.read_table(path, columns=[column]) for path in (out, tmp_path / "whole.parquet"))
            assert left.equals(right)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.parquet", "whole.parquet"]

    def test_other_work_starts_afresh(self, home: Path, tmp_path: Path, forwards: list[Any]) -> None:
        models = load_model(home / "student"), load_model(home / "teacher")

        def stop(done: int, total: int) -> None:  # noqa: ARG001
            if done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            opd_probe.replay(*models, ROWS, k=8, batch_tokens=1, out=tmp_path / "t.parquet", progress=stop)
        forwards.clear()
        trace = opd_probe.replay(*models, ROWS, k=8, batch_tokens=1, temperature=0.5, out=tmp_path / "t.parquet")
        assert len(forwards) == 12
        same_numbers(trace, opd_probe.replay(*models, ROWS, k=8, batch_tokens=1, temperature=0.5))


class TestRefused:
    @pytest.mark.parametrize("k", [0, -3, True, 2.0, "8"])
    def test_k(self, home: Path, k: Any) -> None:
        with pytest.raises(InputError, match="k = "):
            opd_probe.replay(home / "student", home / "teacher", ROWS, k=k)

    @pytest.mark.parametrize("temperature", [0, -1.0, float("inf")])
    def test_temperature(self, home: Path, temperature: float) -> None:
        with pytest.raises(InputError, match="temperature"):
            opd_probe.replay(home / "student", home / "teacher", ROWS, temperature=temperature)

    def test_no_rollouts(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="empty"):
            opd_probe.replay(home / "student", home / "teacher", [])
        (tmp_path / "r.jsonl").write_text("")
        with pytest.raises(InputError, match="empty"):
            opd_probe.replay(home / "student", home / "teacher", tmp_path / "r.jsonl")

    def test_no_such_model(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingError) as caught:
            opd_probe.replay(home / "student", tmp_path / "nothing", ROWS)
        assert "\n" not in str(caught.value)

    def test_two_tokenizers(self, home: Path, tmp_path: Path) -> None:
        words = [str(number) for number in range(61)]
        words[10], words[11] = words[11], words[10]
        save_checkpoint(tmp_path / "other", tiny_model(seed=4), tiny_tokenizer(words=words))
        with pytest.raises(InputError, match=r"id 13 is '10' in the first and '11' in the second") as caught:
            opd_probe.replay(home / "student", tmp_path / "other", ROWS)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", ["directory", "below a file"])
    def test_an_output_that_cannot_be_written(
        self, home: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before any model is loaded."""
        monkeypatch.setattr("opd_probe.jobs.replay.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        (tmp_path / "file").write_text("")
        out = tmp_path if kind == "directory" else tmp_path / "file" / "t.parquet"
        with pytest.raises(OutputError) as caught:
            opd_probe.replay(home / "student", home / "teacher", ROWS, out=out)
        assert "\n" not in str(caught.value)
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]

    def test_bad_rollouts_leave_nothing_behind(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="token id 77 is outside"):
            opd_probe.replay(
                home / "student",
                home / "teacher",
                [{"prompt_ids": [3], "response_ids": [77]}],
                out=tmp_path / "t.parquet",
            )
        assert list(tmp_path.iterdir()) == []
