"""Replay against a served teacher: equal to the local replay where the server tells, resumed, reused, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.engine.served import TOLD, UNKNOWN, ServedReplay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.errors import InputError, OpdProbeWarning, ServerError, VocabularyError
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.served.dialects import Told
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import connect
from opd_probe.rollouts.files import rollouts_from_dicts
from opd_probe.trace import Trace
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, Fault, Served, serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

PATH = "/v1/completions"
REFUSAL = Fault(400, b'{"error": {"message": "no"}}')
ROWS = [{"prompt_ids": [5, 9, 40], "response_ids": [7, 33]}]
PROBE = 1
"""Requests before the first rollout: how deep the lists go, and what the server answers."""

AFTER = 1
"""Requests behind the last rollout that is asked about: whether the server answers as before."""


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Exchanges.read("vllm_teacher.jsonl")) as served:
        yield served


@pytest.fixture(scope="module")
def student() -> LoadedModel:
    return load_model(cases.student())


@pytest.fixture(scope="module")
def local(student: LoadedModel) -> Trace:
    return opd_probe.replay(student, cases.teacher(), cases.rollouts(), k=cases.K)


def replayed(server: Served, student: Any, **options: Any) -> Trace:
    return opd_probe.replay(student, server.url, cases.rollouts(), **{"k": cases.K, **options})


def check_against(local: Trace, served: Trace, *, rounding: float = 0.0) -> None:
    """Equal to a local replay's where the server tells, else NaN; ``rounding``: of the student in other batches."""
    assert served.rollouts.equals(local.rollouts)
    for name in local.columns:
        ours, theirs = served.column(name), local.column(name)
        if name in UNKNOWN:
            assert np.isnan(ours).all(), name
        elif name.startswith("student"):
            np.testing.assert_allclose(ours, theirs, atol=rounding, rtol=0, err_msg=name)
        elif name in ("teacher_top_ids", "token_id", "position"):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        elif name != "teacher_logprobs_at_student_top":
            np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=name)
    told = served.column("student_top_ids")[:, :, None] == served.column("teacher_top_ids")[:, None, :]
    known = told.any(2) | (served.column("student_top_ids") == served.column("token_id")[:, None])
    expected = np.where(known, local.column("teacher_logprobs_at_student_top"), np.nan)
    np.testing.assert_allclose(served.column("teacher_logprobs_at_student_top"), expected, atol=1e-3)
    assert 0 < known.sum() < known.size


def test_equal_to_the_local_replay_where_the_server_tells(server: Served, student: LoadedModel, local: Trace) -> None:
    counts: list[tuple[int, int]] = []
    trace = replayed(server, student, progress=lambda *done: counts.append(done), jsd=True)
    check_against(local, trace)
    assert np.isnan(trace.column("jsd")).all()
    assert counts[0] == (0, 2 * trace.n_states)
    assert counts[-1] == (2 * trace.n_states, 2 * trace.n_states)
    assert counts == sorted(counts)
    teacher = trace.provenance["teacher"]
    assert teacher["url"] == server.url
    assert (teacher["source"], teacher["model"], teacher["server"]) == ("served", "tiny-teacher", "vllm 0.32.0")
    assert teacher["normalised_over"].startswith("its whole vocabulary")
    assert trace.provenance["vocabulary"]["assumed"]


def test_the_depth_is_lowered_to_what_the_server_tells(server: Served, student: LoadedModel) -> None:
    with pytest.warns(OpdProbeWarning, match=r"tells the top 20 at most, asked for are 64.*--max-logprobs"):
        trace = opd_probe.replay(student, server.url, cases.rollouts()[2:3], k=64)
    assert trace.K == trace.column("teacher_top_ids").shape[1] == 20


def test_an_interrupted_replay_goes_on_where_the_server_stopped(
    server: Served, student: LoadedModel, local: Trace, tmp_path: Path
) -> None:
    out = tmp_path / "trace.parquet"
    server.fail(PATH, [None] * (PROBE + 2) + [REFUSAL] * 9)
    with pytest.raises(ServerError, match="answers 400"):
        replayed(server, student, out=out)
    assert not out.exists()
    server.fail(PATH, [])
    before = len(server.bodies(PATH))
    check_against(local, replayed(server, student, out=out))
    asked = [body["prompt"] for body in server.bodies(PATH)[before + PROBE :]]
    assert 1 <= len(asked) - AFTER <= 2  # of four rollouts with states
    assert {path.name for path in tmp_path.iterdir()} == {"trace.parquet"}


def test_an_interrupt_in_the_students_pass_asks_the_server_nothing_again(
    server: Served, student: LoadedModel, local: Trace, tmp_path: Path
) -> None:
    out = tmp_path / "trace.parquet"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replayed(server, student, out=out, progress=stop, batch_tokens=8)
    before = len(server.bodies(PATH))
    check_against(local, replayed(server, student, out=out, batch_tokens=8), rounding=3e-6)
    assert len(server.bodies(PATH)) == before + PROBE


def test_a_finished_trace_is_used_again_wherever_the_model_is_served(
    server: Served, student: LoadedModel, tmp_path: Path
) -> None:
    out = tmp_path / "trace.parquet"
    made = replayed(server, student, out=out, k=cases.K)
    stamp = out.stat().st_mtime_ns
    with serving(server.exchanges) as elsewhere:
        again = replayed(elsewhere, student, out=out)
        assert len(elsewhere.bodies(PATH)) == PROBE
    assert (again.n_states, out.stat().st_mtime_ns) == (made.n_states, stamp)
    known = dict(server.exchanges.known)
    listing = json.loads(json.dumps(known["GET /v1/models null"][1]))
    listing["data"][0]["root"] = "another-model"
    known["GET /v1/models null"] = (200, listing)
    with serving(Exchanges(known)) as changed, pytest.warns(OpdProbeWarning, match="teacher weights changed"):
        replayed(changed, student, out=out)


def test_another_checkpoint_of_the_same_states_asks_nothing(
    server: Served, student: LoadedModel, tmp_path: Path
) -> None:
    replayed(server, student, out=tmp_path / "step-1.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no trace")
    later = load_model(tiny_model(cases.WIDTH, hidden=64, seed=8, tied=False))
    before = len(server.bodies(PATH))
    trace = replayed(server, later, out=tmp_path / "step-2.parquet")
    assert len(server.bodies(PATH)) == before + PROBE
    check_against(opd_probe.replay(later, cases.teacher(), cases.rollouts(), k=cases.K), trace)
    before = len(server.bodies(PATH))
    others = [row for row in cases.rollouts() if row["id"] != "r1"]
    opd_probe.replay(later, server.url, others, k=cases.K, out=tmp_path / "step-3.parquet")
    assert len(server.bodies(PATH)) == before + PROBE + 3 + AFTER


def test_several_teachers_one_of_them_served(server: Served, student: LoadedModel, local: Trace) -> None:
    teachers = {"here": cases.teacher(), "there": server.url}
    traces = opd_probe.replay_teachers(student, teachers, cases.rollouts(), k=cases.K)
    check_against(traces["here"], traces["there"])
    assert traces["there"].provenance["labels"]["teacher"] == "there"
    np.testing.assert_array_equal(traces["here"].column("reverse_kl"), local.column("reverse_kl"))


def test_a_student_of_fewer_ids_and_an_unknown_tokenizer() -> None:
    """What the server tells of ids that the student lacks is left out, and the ranks close up."""
    small = load_model(tiny_model(56, hidden=32, seed=5))
    rows = [{"prompt_ids": [5, 9, 40], "response_ids": [7, 33, 50, 2, 55, 18]}]
    with pytest.warns(OpdProbeWarning, match="lies outside the shared vocabulary"):
        local = opd_probe.replay(small, cases.teacher(), rows, k=8)
    with (
        serving(SGLangAnswers(cases.teacher())) as server,
        pytest.warns(OpdProbeWarning, match=r"% of the top tokens .* are not among the ids"),
    ):
        trace = opd_probe.replay(small, server.url, rows, k=8)
    ids, logprobs = trace.column("teacher_top_ids"), trace.column("teacher_top_logprobs")
    lost = (ids < 0).sum(1)
    assert 0 < lost.sum() < ids.size
    shift = np.log1p(-local.column("teacher_mass_outside"))  # the local replay renormalises
    for state in range(trace.n_states):
        kept = 8 - lost[state]
        np.testing.assert_array_equal(ids[state, :kept], local.column("teacher_top_ids")[state, :kept])
        expected = local.column("teacher_top_logprobs")[state, :kept] + shift[state]
        np.testing.assert_allclose(logprobs[state, :kept], expected, atol=1e-5)
        assert np.isnan(logprobs[state, kept:]).all()
        assert np.isnan(trace.column("student_logprobs_at_teacher_top")[state, kept:]).all()
    ratio = opd_probe.state_metrics(trace, 8)["overlap_ratio"].to_numpy()
    np.testing.assert_array_equal(np.isnan(ratio), lost > 0)


def test_the_teachers_tokenizer_can_be_named(tmp_path: Path) -> None:
    words = [str(number) for number in range(cases.WIDTH - 3)]
    other = tiny_tokenizer(words=["a", *words[1:]])
    save_checkpoint(tmp_path / "student", cases.student(), tiny_tokenizer(cases.WIDTH))
    other.save_pretrained(tmp_path / "tokenizer")
    with serving(SGLangAnswers(cases.teacher())) as server:
        trace = opd_probe.replay(tmp_path / "student", server.url, ROWS, k=4)
        assert trace.provenance["vocabulary"]["assumed"]
        named = opd_probe.replay(tmp_path / "student", server.url, ROWS, k=4, teacher_tokenizer=tiny_tokenizer(64))
        assert (named.vocabulary_size, named.provenance["vocabulary"]["assumed"]) == (64, False)
        with pytest.raises(VocabularyError, match="id 3 is '0' in the first and 'a' in the second"):
            opd_probe.replay(tmp_path / "student", server.url, ROWS, k=4, teacher_tokenizer=str(tmp_path / "tokenizer"))


def test_prompts_of_the_teachers_own(student: LoadedModel) -> None:
    rollouts = [
        opd_probe.Rollout(str(n), row["prompt_ids"], row["response_ids"]) for n, row in enumerate(cases.rollouts())
    ]
    prompts = [[50, 51, *rollout.prompt_ids[1:]] for rollout in rollouts]
    settings, ids = ReplaySettings(k=6), np.arange(cases.WIDTH)
    with serving(SGLangAnswers(cases.teacher())) as server:
        engine = ServedReplay(student, connect(parse_endpoint(server.url)), rollouts, ids, settings, prompts)
        told = dict(engine.answers(np.zeros(len(rollouts), dtype=bool)))
    states = dict(engine.states(np.zeros(len(rollouts), dtype=bool), told.__getitem__, lambda *_: None))
    from opd_probe.engine.replay import Replay

    expected = dict(Replay(student, load_model(cases.teacher()), rollouts, ids, settings, prompts).states())
    assert set(states) == set(expected) == set(told)
    for index, columns in expected.items():
        for name in (*TOLD, "student_top_ids", "student_logprobs_at_teacher_top", "position"):
            np.testing.assert_allclose(states[index][name], columns[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"temperature": 0.7}, InputError, "temperature = 0.7: a served teacher tells a part"),
        ({"k": 0}, InputError, "k = 0"),
    ],
)
def test_refused_before_the_student_is_loaded(
    server: Served, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        replayed(server, "no/such/student", **change)


def test_a_sequence_too_long_for_the_server(student: LoadedModel) -> None:
    rows = [{"id": "long", "prompt_ids": [5] * 60, "response_ids": [8] * 68}]
    with serving(SGLangAnswers(cases.teacher())) as server:
        with pytest.raises(InputError, match=r"'long': prompt and response have 128 tokens, .* scores 127 at most"):
            opd_probe.replay(student, server.url, rows, k=4)
        fitting = [{**rows[0], "response_ids": [8] * 67}]
        assert opd_probe.replay(student, server.url, fitting, k=4).n_states == 67


@pytest.mark.parametrize("source", ["http://joe:hunter2@127.0.0.1:9", "https://joe:hunter2@host:port"])
@pytest.mark.parametrize("call", [lambda s: opd_probe.replay(s, "x", ROWS), lambda s: opd_probe.replay("x", s, ROWS)])
def test_no_password_in_an_error(source: str, call: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd_probe.models.served.model.HELLO", 1)
    with pytest.raises(opd_probe.OpdProbeError) as caught:
        call(source)
    assert "hunter2" not in str(caught.value)


def given() -> list[opd_probe.Rollout]:
    return rollouts_from_dicts(cases.rollouts())


class Cut:
    """A server whose sampler cut its distributions to three ids: the rest of its lists is of probability 0."""

    name, max_positions = "cut", None

    def __init__(self, local: Trace) -> None:
        self.local = local

    def scores(self, sequences: Sequence[Any], k: int) -> Iterator[tuple[int, Told]]:
        for number, (ids, _) in enumerate(sequences):
            index = next(i for i, one in enumerate(given()) if [*one.prompt_ids, *one.response_ids] == list(ids))
            rows = slice(*self.local.rollout_offsets[index : index + 2])
            logprobs = self.local.column("teacher_top_logprobs")[rows].copy()
            logprobs[:, 3:] = -np.inf
            top = self.local.column("teacher_top_ids")[rows]
            assert k == top.shape[1]
            yield number, Told(top, logprobs, self.local.column("teacher_logprob")[rows])


def test_ids_of_probability_0_end_a_servers_list(student: LoadedModel, local: Trace) -> None:
    ids = np.arange(student.width)
    engine = ServedReplay(student, Cut(local), given(), ids, ReplaySettings(k=cases.K))
    told = dict(engine.answers(np.zeros(len(given()), dtype=bool)))
    for index, columns in engine.states(np.zeros(len(given()), dtype=bool), told.__getitem__, lambda *_: None):
        rows = slice(*local.rollout_offsets[index : index + 2])
        top = local.column("teacher_top_ids")[rows]
        np.testing.assert_array_equal(columns["teacher_top_ids"][:, :3], top[:, :3])
        assert (columns["teacher_top_ids"][:, 3:] == -1).all()
        for name in ("teacher_top_logprobs", "student_logprobs_at_teacher_top"):
            assert (columns[name][:, 3:] == -np.inf).all(), name
        at = columns["teacher_logprobs_at_student_top"]  # a whole list tells of every id
        shared = (columns["student_top_ids"][:, :, None] == top[:, None, :3]).any(2)
        sampled = columns["student_top_ids"] == columns["token_id"][:, None]
        assert np.isfinite(at[shared]).all()
        assert (at[~shared & ~sampled] == -np.inf).all()
