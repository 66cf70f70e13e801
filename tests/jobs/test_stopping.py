"""Replays that stop when they are precise enough: where, what they say, and how they are gone on from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.curves.looks import look_level, look_sizes
from opd_probe.curves.planning import prompts_needed
from opd_probe.errors import InputError, OpdProbeWarning, TraceError
from opd_probe.jobs.stopping import Order
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Rollout
from tests.cli.workspace import Caller, build, write_lines
from tests.models.served.recorded_server import serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.reference_intervals import from_changes
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

K = 16


def rows(prompts: int = 61) -> list[dict[str, Any]]:
    """Two rollouts of each prompt, of log-normal length; the fourth prompt has no state, so that 60 do."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(2 * prompts):
        length = 0 if index // 2 == 3 else math.ceil(4 * math.exp(0.7 * generator.normal()))
        prompt = [3 + index // 2 % 61, 5, 3 + index // 122]
        response = generator.integers(3, 64, length).tolist()
        found.append({"id": f"r{index}", "prompt_id": f"p{index // 2}", "prompt_ids": prompt, "response_ids": response})
    return found


ROWS = rows()
LOOKS = [40, 50, 60]
BATCH = 60
"""Tokens of a batch: several batches in each unit."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> tuple[LoadedModel, LoadedModel]:
    return load_model(tiny_model(seed=1)), load_model(tiny_model(seed=2, hidden=48))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build(tmp_path_factory.mktemp("stopping"))
    write_lines(root / "many.jsonl", ROWS)
    return root


@pytest.fixture(scope="module")
def through(models: tuple[LoadedModel, LoadedModel]) -> Trace:
    """What a replay gives that may stop and never does."""
    with pytest.warns(OpdProbeWarning, match="precision overlap_ratio=1e-09 is not reached with all 60 prompts"):
        return opd_probe.replay(*models, ROWS, K, precision=1e-9, batch_tokens=BATCH)


@pytest.fixture(scope="module")
def width(through: Trace) -> float:
    """Narrower than the interval at the first look, wider than at the second."""
    halves = [half_width(through, look)[0] for look in LOOKS[:2]]
    assert halves[1] < halves[0]
    return sum(halves) / 2


def taken(look: int) -> list[str]:
    """The first prompts of the order."""
    order = [f"p{index}" for index in np.random.default_rng(0).permutation(61)]
    return [name for name in order if name != "p3"][:look]


def half_width(trace: Trace, look: int) -> tuple[float, float, float]:
    """By another way, of ``overlap_ratio`` over the first prompts: the farther end's distance, and both ends."""
    states = opd_probe.state_metrics(trace, K)
    by_prompt = states[states["prompt_id"].isin(taken(look))].groupby("prompt_id")["overlap_ratio"]
    total, count = by_prompt.sum().to_numpy(), by_prompt.count().to_numpy()
    mean = total.sum() / count.sum()
    left_out = (total.sum() - total) / (count.sum() - count)
    level = look_level(3) if look < 60 else 0.95
    n = len(total)
    changes = ((n - 1) / n * (mean - left_out)).tolist()
    units = count.sum() / 2  # two rollouts a prompt
    lo, hi = from_changes(mean, changes, units, 0.0, 1.0, level=level)
    return max(mean - lo, hi - mean), lo, hi


def states_of(trace: Trace) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Every column of every state, by rollout and position."""
    ids = np.array(trace.rollouts.column("rollout_id").to_pylist())[trace.rollout_index()]
    columns = [trace.column(name) for name in trace.columns]
    keys = zip(ids.tolist(), trace.column("position").tolist(), strict=True)
    return {key: tuple(column[row].tobytes() for column in columns) for row, key in enumerate(keys)}


def test_looks_are_fixed_beforehand_and_share_what_may_miss() -> None:
    assert [look_sizes(prompts) for prompts in (1, 40, 44, 45)] == [(1,), (40,), (44,), (40, 45)]
    for prompts in (60, 400, 10_000):
        sizes = look_sizes(prompts)
        assert sizes[-1] == prompts
        assert all(1.1 < after / before < 1.5 for before, after in pairwise(sizes))
        assert len(sizes) * (1 - look_level(len(sizes))) == pytest.approx(0.05)


def test_units_are_whole_prompts_in_a_seeded_order() -> None:
    given = [Rollout(**row) for row in ROWS]
    units = Order.of(given, 0).units(given)
    assert sorted(index for unit in units for index in unit) == list(range(122))
    held = [{given[index].prompt_id for index in unit} - {"p3"} for unit in units]
    assert [len(prompts) for prompts in held] == [40, 10, 10]
    assert held[0] == set(taken(40))
    assert units != Order.of(given, 1).units(given)
    assert Order.stored({"seed": 0, "looks": LOOKS}, given) == Order.of(given, 0)
    for wrong in (
        None,
        {},
        {"seed": -1, "looks": LOOKS},
        {"seed": 0, "looks": [40, 40, 60]},
        {"seed": 0, "looks": [4]},
    ):
        assert Order.stored(wrong, given) is None


def test_it_stops_at_the_first_look_that_is_narrow_enough(
    models: tuple[LoadedModel, LoadedModel], through: Trace, width: float
) -> None:
    trace = opd_probe.replay(*models, ROWS, K, precision={"overlap_ratio": width}, batch_tokens=BATCH)
    row, (_, lo, hi) = opd_probe.summarize(trace, K), half_width(through, 50)
    assert (row["overlap_ratio_lo"], row["overlap_ratio_hi"]) == pytest.approx((lo, hi), abs=1e-6)
    assert set(trace.rollouts.column("prompt_id").to_pylist()) - {"p3"} == set(taken(50))
    assert trace.provenance["order"] == {"seed": 0, "looks": LOOKS}
    assert trace.stopped == {
        "asked": {"overlap_ratio": width}, "k": K, "average": "token", "level": 1 - 0.05 / 3, "prompts": 50,
        "of_prompts": 60, "states": trace.n_states, "of_states": through.n_states,
    }  # fmt: skip
    assert states_of(trace).items() < states_of(through).items()


def test_a_stopped_trace_is_gone_on_from_to_the_same_bytes(
    models: tuple[LoadedModel, LoadedModel], through: Trace, width: float, tmp_path: Path
) -> None:
    out, calls = tmp_path / "trace.parquet", [0]

    def replayed(*, most: float = math.inf, **options: Any) -> Trace:
        def progress(_done: int, _total: int) -> None:
            calls[0] += 1
            if calls[0] > most:
                raise KeyboardInterrupt

        calls[0] = 0
        return opd_probe.replay(*models, ROWS, K, out=out, progress=progress, batch_tokens=BATCH, **options)

    first = replayed(precision=1.0)
    assert first.stopped is not None
    assert first.stopped["prompts"] == 40
    before = out.read_bytes()
    assert replayed(precision=0.9).stopped == first.stopped
    assert (calls, out.read_bytes()) == ([0], before)  # it is narrower than that, and is used as it is
    held = states_of(first)
    second = replayed(precision=width)
    assert second.stopped is not None
    assert second.stopped["prompts"] == 50
    kept = states_of(second)
    assert held.items() < kept.items()
    with pytest.raises(KeyboardInterrupt):  # in the last unit
        replayed(most=2)
    assert read_trace(out).stopped == second.stopped
    whole = replayed()
    assert (whole.stopped, whole.provenance["order"]) == (None, {"seed": 0, "looks": LOOKS})
    assert states_of(whole) == states_of(through)
    assert not list(tmp_path.glob(".*"))
    assert replayed(reuse=False, precision=1.0).stopped == first.stopped
    out.unlink()
    with pytest.raises(KeyboardInterrupt):  # work that was begun in an order is ended in it
        replayed(most=3, precision=width)
    assert states_of(replayed()) == states_of(through)
    at_once = opd_probe.replay(*models, ROWS, K, batch_tokens=BATCH)
    assert "order" not in at_once.provenance
    assert whole.rollouts.equals(at_once.rollouts)
    for name in at_once.columns:
        if at_once.column(name).dtype.kind == "f":
            np.testing.assert_allclose(whole.column(name), at_once.column(name), atol=1e-5)


def test_several_teachers_stop_each_on_its_own_in_sequence_too(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(64)
    for name, model in (("student", tiny_model(seed=1)), ("far", tiny_model(seed=2)), ("near", tiny_model(seed=1))):
        if name == "near":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.01)
        save_checkpoint(tmp_path / name, model, tokenizer)
    found: dict[bool, dict[str, Trace]] = {}
    teachers = {name: tmp_path / name for name in ("far", "near")}
    for sequential in (False, True):
        how: dict[str, Any] = {"k": K, "sequential": sequential, "precision": {"reverse_kl": 0.02}}
        with pytest.warns(OpdProbeWarning, match="precision reverse_kl=0.02 is not reached with all 60 prompts"):
            found[sequential] = opd_probe.replay_teachers(tmp_path / "student", teachers, ROWS, **how)
    stops = {name: trace.stopped for name, trace in found[False].items()}
    assert stops["far"] is None
    assert stops["near"] is not None
    for name, trace in found[True].items():
        assert trace.stopped == stops[name]
        assert states_of(trace) == states_of(found[False][name])


def test_a_served_teacher_is_asked_no_more_than_is_looked_at(
    models: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    out = tmp_path / "trace.parquet"
    with serving(SGLangAnswers(tiny_model(seed=2))) as server:

        def replayed(**options: Any) -> tuple[Trace, int]:
            before = len(server.bodies("/generate"))
            trace = opd_probe.replay(models[0], server.url, ROWS, K, out=out, **options)
            return trace, len(server.bodies("/generate")) - before

        with pytest.raises(InputError, match="--precision of reverse_kl: a served teacher does not tell it"):
            replayed(precision={"reverse_kl": 0.1})
        first, asked = replayed(precision=1.0)
        assert first.stopped is not None
        assert 80 <= asked < 90  # 40 prompts, two rollouts each
        held = states_of(first)
        before = len(server.bodies("/generate"))
        other = opd_probe.replay(models[1], server.url, ROWS, K, out=tmp_path / "other.parquet", precision=1.0)
        assert other.stopped == first.stopped
        assert len(server.bodies("/generate")) - before < 5  # what it told of another checkpoint's rollouts counts
        whole, more = replayed()
        assert whole.stopped is None
        assert more < 50
        assert held.items() < states_of(whole).items()
        assert not whole.warnings
        assert not first.warnings


def test_what_cannot_be_stopped_by_is_refused_and_what_is_unknown_replays_all(
    models: tuple[LoadedModel, LoadedModel],
) -> None:
    for wrong, message in (
        ({"student_k_for_0.97": 1}, "a metric whose mean has an interval"),
        ({"jsd": 0.1}, "jsd=True"),
        (0, "a width above 0"),
        (float("nan"), "a width above 0"),
        ("overlap_ratio=x", "a width above 0"),
        ([0.1, "overlap_ratio=0.2"], "each metric once"),
        ({}, "at least once"),
    ):
        with pytest.raises(InputError, match=message):
            opd_probe.replay(*models, ROWS, K, precision=wrong)  # type: ignore[arg-type]
    with pytest.warns(OpdProbeWarning, match="precision accuracy=1 is not reached .* accuracy has no interval"):
        assert opd_probe.replay(*models, ROWS, K, precision={"accuracy": 1}).stopped is None
    with pytest.warns(OpdProbeWarning) as said:
        assert opd_probe.replay(*models, ROWS[:2], K, precision=0.5).stopped is None
    assert any("1 prompts are too few to stop" in str(one.message) for one in said)
    assert any("with all 1 prompts: overlap_ratio has no interval" in str(one.message) for one in said)


class TestCommands:
    """What the commands make of a stopped trace."""

    @pytest.fixture
    def overlap(
        self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Any]:
        call = Caller(capsys, root, monkeypatch)
        words = ("--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--rollouts", "many.jsonl", "--k", "8")
        return lambda *more: call("overlap", *words, "--out", "out", "--format", "json", *more), call

    def test_a_row_says_where_it_stopped_and_other_commands_know(
        self, overlap: tuple[Callable[..., Any], Caller], root: Path, tmp_path: Path
    ) -> None:
        run, call = overlap
        done = run("--precision", "0.9", "--precision", "reverse_kl=9")
        (row,) = done.rows
        assert (done.code, row["n_prompts"], row["n_prompts_in_all"]) == (0, 40, 60)
        assert row["stopped"] == f"at 40 of 60 prompts, {row['n_states']} of {row['n_states_in_all']} states"
        assert row["interval_level"] == pytest.approx(1 - 0.05 / 3)
        assert run("--precision", "0.9", "--precision", "reverse_kl=9").rows == [row]
        (trace,) = (root / "out" / "traces").rglob("*.parquet")
        shown = json.loads(call("show", trace, "--format", "json", "--precision", "0.01").out)
        assert (shown["stopped"], shown["provenance"]["stopped"]["asked"]) == (
            row["stopped"],
            {"overlap_ratio": 0.9, "reverse_kl": 9},
        )
        (needed,) = shown["prompts_needed"]
        assert needed["prompts_lo"] < needed["prompts"] < needed["prompts_hi"]
        assert "verdict" in call("verify", trace, "--rollouts", "many.jsonl", "--states", "3").out
        assert call("tokens", trace, "--out", tmp_path).code == 0
        assert "stopped at 40 of 60 prompts" in (tmp_path / "tokens.html").read_text()
        kept = Path(shutil.copy(trace, tmp_path / "stopped.parquet"))
        (whole,) = run().rows
        assert "stopped" not in whole
        assert (whole["n_prompts"], whole["n_states"]) == (60, row["n_states_in_all"])
        assert run("--precision", "0.9").rows == [whole]  # what is there is as precise as that
        pair = call("compare", kept, trace, "--k", "8", "--out", tmp_path, "--format", "json")
        assert "the replay of A stopped when it was precise" in pair.err
        assert {(one["n_prompts"], one["n_prompts_only_b"], one["stopped_a"]) for one in pair.rows} == {
            (40, 20, row["stopped"])
        }
        stored = read_trace(kept)
        said = dict(stored.stopped or {})
        for name, value in (("level", 1.5), ("prompts", "many"), ("of_states", None)):
            stored.provenance["stopped"] = (
                {**said, name: value} if value is not None else {other: said[other] for other in said if other != name}
            )
            with pytest.raises(TraceError, match=f"(of its provenance has no |stopped[.]){name}"):
                stored.save(tmp_path / "broken.parquet")

    def test_bad_words_and_few_prompts(self, overlap: tuple[Callable[..., Any], Caller]) -> None:
        run, call = overlap
        for words, message in (
            (
                ("--precision", "nothing=1"),
                "option --precision: expected a metric whose mean has an interval",
            ),
            (("--precision", "-1"), "option --precision: expected a width above 0"),
            (("--precision", "jsd=1"), "--precision of jsd: it is measured only with --jsd; add it"),
        ):
            done = run(*words)
            assert (done.code, len(done.errors)) == (2, 1)
            assert message in done.errors[0]
        done = call("overlap", "--ckpts", "runs/good/checkpoint-5", "--teacher", "teacher", "--rollouts",
                    "rollouts.jsonl", "--k", "8", "--precision", "0.01", "--out", "few")  # fmt: skip
        assert done.code == 0
        assert "4 prompts are too few to stop" in done.err
        assert "precision overlap_ratio=0.01 is not reached with all 4 prompts" in done.err


def test_how_many_prompts_a_width_takes(through: Trace) -> None:
    states = opd_probe.state_metrics(through, K)
    by_prompt = states.groupby("prompt_id")["reverse_kl"]
    total, count = by_prompt.sum().to_numpy(np.float64), by_prompt.count().to_numpy()
    residual = (total - total.sum() / count.sum() * count) / count.mean()
    (row, none) = prompts_needed(through, {"reverse_kl": [0.05], "accuracy": [0.1]}, K)
    assert row["prompts"] == pytest.approx(1.959964**2 * residual.var(ddof=1) / 0.05**2, rel=0.05)
    assert row["prompts_lo"] < 0.9 * row["prompts"] < 1.1 * row["prompts"] < row["prompts_hi"]
    assert none["prompts"] is None
