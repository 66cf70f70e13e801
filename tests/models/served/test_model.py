"""The client against a real local server that gives a real vLLM's answers, late, broken, or not at all."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.errors import InputError, OpdProbeError, OpdProbeWarning, ServerError
from opd_probe.models.served.client import Client, Patience, Refused
from opd_probe.models.served.dialects import DIALECTS
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import CONCURRENCY, ServedModel, connect
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, Fault, Served, serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.models.served.vllm_server import VLLMAnswers

QUICK = Patience(attempts=4, first=0.001, longest=0.01, read=5.0)
PATH = "/v1/completions"


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Exchanges.read("vllm_teacher.jsonl")) as served:
        yield served


def reach(server: Served, patience: Patience = QUICK, model: str = "") -> ServedModel:
    return connect(parse_endpoint(server.url + model), patience=patience)


def sequences() -> list[tuple[list[int], list[int]]]:
    """The recorded ones: each rollout whole, asked about at all its response tokens."""
    found = []
    for row in cases.rollouts():
        prompt, response = row["prompt_ids"], row["response_ids"]
        if response:
            found.append((prompt + response, list(range(len(prompt), len(prompt + response)))))
    return found


def until(reached: Callable[[], bool]) -> None:
    """Wait for other threads, for a while at most."""
    for _ in range(2000):
        if reached():
            return
        time.sleep(0.01)


def check_against_the_model(asked: list[tuple[list[int], list[int]]], told: dict[int, Any]) -> None:
    model = cases.teacher()
    assert set(told) == set(range(len(asked)))
    for index, (ids, places) in enumerate(asked):
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()
        before = logs[np.array(places) - 1]
        order = np.argsort(-before, axis=1, kind="stable")[:, : cases.K]
        np.testing.assert_array_equal(told[index].top_ids, order)
        np.testing.assert_allclose(told[index].top_logprobs, np.take_along_axis(before, order, 1), atol=1e-3)
        sampled = before[np.arange(len(places)), [ids[place] for place in places]]
        np.testing.assert_allclose(told[index].logprob, sampled, atol=1e-3)


def test_what_vllm_told_is_what_the_model_says(server: Served) -> None:
    served, asked = reach(server), sequences()
    check_against_the_model(asked, dict(served.scores(asked, cases.K)))
    assert served.identity["server"] == "vllm 0.32.0"
    assert served.identity["model"] == served.identity["root"] == "tiny-teacher"
    assert served.max_positions == 127


@pytest.mark.parametrize("old", [False, True])
def test_sglang_says_the_same_in_its_layout(old: bool) -> None:
    with serving(SGLangAnswers(cases.teacher(), old=old)) as server:
        served, asked = reach(server), sequences()
        assert any(cases.WIDTH - 1 in ids for ids, _ in asked)  # which SGLang writes as 0
        check_against_the_model(asked, dict(served.scores(asked, cases.K)))
        assert served.allowed(12) == 12
        assert served.identity["server"] == "sglang 0.5.23"
        assert served.identity["model_path"] == "/models/tiny"
        assert "server-side-secret" not in json.dumps(served.identity)
        assert all(body["sampling_params"]["max_new_tokens"] == 0 for body in server.bodies("/generate"))


def test_weights_that_change_meanwhile_are_noticed() -> None:
    answers = SGLangAnswers(cases.teacher())
    with serving(answers) as server:
        served = reach(server)
        answers.weights = "8"
        with pytest.raises(ServerError, match="its weights changed from version '7' to '8' meanwhile"):
            list(served.scores(sequences(), cases.K))


def test_an_adapter_is_named_in_sglangs_request() -> None:
    with serving(SGLangAnswers(cases.teacher(), adapter="lora-7")) as server:
        with pytest.raises(InputError, match=r"has 2 models \(tiny, lora-7\); name one, as in .*#tiny"):
            reach(server)
        assert reach(server, model="#lora-7").allowed(4) == 4
        assert server.bodies("/generate")[-1]["lora_path"] == "lora-7"
        reach(server, model="#tiny").allowed(4)
        assert "lora_path" not in server.bodies("/generate")[-1]


WHOLE = Exchanges.read("vllm_teacher.jsonl")
CUT = Fault(200, b'{"choices": [{"ind', {"Content-Length": "4000"})


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(429, b"slow down", {"Retry-After": "0"})],
        [Fault(500, b"CUDA out of memory"), Fault(503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})],
        [Fault(close=True), CUT],
        [Fault(200, b"<html>not JSON</html>"), Fault(200, b"\xff\xfe\x00garbage")],
        [Fault(502, b"\xff" * 10, {"Retry-After": "nan"}), Fault(408, b"", {"Retry-After": "-3"})],
        [Fault(200, b"not zipped", {"Content-Encoding": "gzip"}), Fault(200, b"[" * 100_000)],
    ],
    ids=["busy", "broken", "breaks off", "garbage", "bad gateway", "cannot be decoded"],
)
def test_what_passes_is_tried_again(server: Served, faults: list[Fault]) -> None:
    served, asked = reach(server), sequences()
    server.fail(PATH, faults)
    check_against_the_model(asked, dict(served.scores(asked, cases.K)))
    assert len(server.bodies(PATH)) == len(asked) + len(faults)


def test_an_answer_that_is_late_is_asked_for_again(server: Served) -> None:
    served = reach(server, Patience(attempts=6, first=0.001, read=0.6))
    server.fail(PATH, [Fault(wait=60.0)])
    told = dict(served.scores(sequences()[:1], cases.K))
    check_against_the_model(sequences()[:1], told)
    assert len(server.bodies(PATH)) >= 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(500, b'{"error": "out of memory"}'), "answers 500 .*out of memory"),
        (Fault(close=True), "breaks off"),
        (CUT, "breaks off"),
        (Fault(200, b"[1, 2"), "answers 200 with something that is not JSON"),
    ],
)
def test_patience_ends_and_keeps_what_was_told(server: Served, fault: Fault, said: str) -> None:
    served, asked = reach(server), sequences()
    server.fail(PATH, [None, *[fault] * 50])
    told = []
    with pytest.raises(ServerError, match=f"{PATH} {said}.*, 4 times; .*goes on from there") as caught:
        told.extend(served.scores(asked, cases.K, at_once=1))
    assert [index for index, _ in told] == [0]
    assert "\n" not in str(caught.value)
    assert len(server.bodies(PATH)) == 1 + QUICK.attempts


@pytest.mark.parametrize("url", ["http://a b:80", "http://" + "x" * 300, "http://xn--\u00fc:1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(OpdProbeError) as caught:
        connect(parse_endpoint(url), patience=QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "advice"), [(301, "give the address"), (403, "OPD_PROBE_API_KEY"), (404, "check")])
def test_refusals_say_what_to_do(server: Served, status: int, advice: str) -> None:
    server.fail("/v1/models", [Fault(status, b"no", {"Location": "http://127.0.0.1:9/"})])
    with pytest.raises(Refused, match=rf"/v1/models answers {status} \(no\); .*{advice}"):
        reach(server)
    assert len(server.asked) == 1


def test_nobody_there() -> None:
    with pytest.raises(ServerError, match=r"/v1/models cannot be reached .*, 3 times; is it running"):
        connect(parse_endpoint("http://127.0.0.1:9"), patience=QUICK)


def test_few_requests_at_a_time(server: Served) -> None:
    served = reach(server)
    server.gate = threading.Event()
    asked = sequences() * 3
    told: dict[int, Any] = {}
    worker = threading.Thread(target=lambda: told.update(served.scores(asked, cases.K)))
    worker.start()
    until(lambda: server.running == CONCURRENCY)
    time.sleep(0.1)  # one more would have come by now
    server.gate.set()
    worker.join(20)
    assert server.most == CONCURRENCY
    check_against_the_model(asked, told)


def test_the_first_refusal_ends_it(server: Served) -> None:
    served, asked = reach(server), sequences()
    refusal = Fault(400, json.dumps({"error": {"message": "prompt is\ntoo odd"}}).encode())
    server.fail(PATH, [None, refusal])
    told = []
    with pytest.raises(Refused, match=r"answers 400 .*too odd.*see the server's log") as caught:
        told.extend(served.scores(asked, cases.K, at_once=1))
    assert [index for index, _ in told] == [0]
    assert len(server.bodies(PATH)) == 2
    assert "\n" not in str(caught.value)


def test_whoever_stops_listening_waits_for_nobody(server: Served) -> None:
    served = reach(server)
    server.fail(PATH, [None, *[Fault(wait=60.0)] * 9])
    answers = served.scores(sequences(), cases.K)
    next(answers)
    until(lambda: server.running > 0)
    answers.close()  # type: ignore[attr-defined]
    assert server.running > 0


def test_the_depth_is_what_the_server_allows(server: Served) -> None:
    served = reach(server)
    assert served.allowed(cases.K) == cases.K
    assert served.allowed(64) == 20
    before = len(server.asked)
    assert served.allowed(64) == 20  # asked once
    assert len(server.asked) == before


def test_keys_go_to_the_server_and_nowhere_else(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_PROBE_API_KEY", "sesame")
    served = reach(server)
    assert {headers.get("Authorization") for *_, headers in server.asked} == {"Bearer sesame"}
    assert "sesame" not in f"{served!r} {served.identity} {served.digest} {served.name}"
    server.fail(PATH, [Fault(401, b'{"error": "no such key: sesame"}')])
    with pytest.raises(Refused, match=r"answers 401 \(.*\*\*\*.*; set OPD_PROBE_API_KEY") as caught:
        served.allowed(cases.K)
    assert "sesame" not in str(caught.value)
    for key in ("schlüssel", "sesame\nagain"):
        monkeypatch.setenv("OPD_PROBE_API_KEY", key)
        with pytest.raises(InputError, match="holds characters that no key has") as refused:
            reach(server)
        assert "sesame" not in str(refused.value)
    monkeypatch.setenv("OPD_PROBE_API_KEY", "sesame\n")  # as from a file
    reach(server)
    assert server.asked[-1][3]["Authorization"] == "Bearer sesame"


def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nothing://here")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(InputError, match="cannot be asked"):
        connect(parse_endpoint("http://example.org"), patience=QUICK)


def test_a_login_in_the_url_is_used_and_not_shown(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_PROBE_API_KEY", "sesame")
    url = server.url.replace("http://", "http://joe:hunter2@")
    served = connect(parse_endpoint(url), patience=QUICK)
    assert {headers["Authorization"] for *_, headers in server.asked} == {"Basic am9lOmh1bnRlcjI="}
    assert "hunter2" not in f"{served!r} {served.identity} {served.digest}"
    server.fail(PATH, [Fault(500, b"hunter2 is wrong")] * 9)
    with pytest.raises(ServerError) as caught:
        served.allowed(cases.K)
    assert "hunter2" not in str(caught.value)


def test_the_digest_is_of_the_model_wherever_it_is_served(server: Served) -> None:
    with serving(server.exchanges) as elsewhere:
        assert reach(server).digest == reach(elsewhere).digest
    other = copy.deepcopy(server.exchanges.known)
    other["GET /v1/models null"][1]["data"][0]["root"] = "another"
    with serving(Exchanges(other)) as changed:
        assert reach(changed).digest != reach(server).digest


def listing(change: Callable[[dict[str, Any]], Any]) -> Exchanges:
    known = copy.deepcopy(WHOLE.known)
    status, answer = known["GET /v1/models null"]
    known["GET /v1/models null"] = (status, change(answer))
    return Exchanges(known)


def test_which_model_is_meant() -> None:
    second = {**WHOLE.known["GET /v1/models null"][1]["data"][0], "id": "alias"}
    with serving(listing(lambda a: {"data": [*a["data"], second]})) as server:
        assert reach(server).model == "tiny-teacher"  # two names of one model
        assert reach(server, model="#alias").model == "alias"
        with pytest.raises(InputError, match=r"has no model 'nope'; it has tiny-teacher, alias"):
            reach(server, model="#nope")


@pytest.mark.parametrize("answer", [{"data": []}, {"data": [{"name": "x"}]}, {"data": "x"}, [1], {"data": [None]}, {}])
def test_a_listing_that_is_none(answer: Any) -> None:
    with serving(listing(lambda _: answer)) as server, pytest.raises(ServerError, match="lists no models"):
        reach(server)


def test_a_server_of_another_kind() -> None:
    exchanges = listing(lambda a: {"data": [{**a["data"][0], "owned_by": "somebody"}]})
    with serving(exchanges) as server:
        assert reach(server).dialect is DIALECTS["vllm"]  # a gateway that passes /version on
        del exchanges.known["GET /version null"]
        with pytest.raises(ServerError, match="calls itself 'somebody' and answers like neither vLLM nor SGLang"):
            reach(server)


BREAKS: dict[str, Callable[[Any], Any]] = {
    "no choices": lambda a: a.pop("choices"),
    "two choices": lambda a: a["choices"].append(a["choices"][0]),
    "a choice that is none": lambda a: a.update(choices=["x"]),
    "no log-probabilities": lambda a: a["choices"][0].update(prompt_logprobs=None),
    "one entry too few": lambda a: a["choices"][0]["prompt_logprobs"].pop(),
    "other ids": lambda a: a["choices"][0].update(prompt_token_ids=[1, 2]),
    "no ids": lambda a: a["choices"][0].pop("prompt_token_ids"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_answers_of_another_layout(server: Served, what: str) -> None:
    served, asked = reach(server), sequences()[:1]
    ids = asked[0][0]
    key = next(k for k in WHOLE.known if f'"prompt": {json.dumps(ids)}' in k and f'"prompt_logprobs": {cases.K}' in k)
    known = copy.deepcopy(WHOLE.known)
    BREAKS[what](known[key][1])
    server.exchanges = Exchanges(known)
    with pytest.raises(OpdProbeError, match=f"the answer of {PATH} .*expected the layout of vllm") as caught:
        list(served.scores(asked, cases.K))
    assert "\n" not in str(caught.value)


SGLANG_BREAKS: dict[str, Callable[[Any], Any]] = {
    "no meta_info": lambda a: a.pop("meta_info"),
    "no top lists": lambda a: a["meta_info"].pop("input_top_logprobs"),
    "a shorter sequence": lambda a: a["meta_info"]["input_token_logprobs"].pop(),
    "another id": lambda a: a["meta_info"]["input_token_logprobs"][-1].__setitem__(1, 33),
}


@pytest.mark.parametrize("what", SGLANG_BREAKS)
def test_sglang_answers_of_another_layout(what: str) -> None:
    answers = SGLangAnswers(cases.teacher())
    ids = [5, 9, 40, 12]
    _, answer = answers.find("POST", "/generate", DIALECTS["sglang"].score_request({"id": "x"}, ids, 4))
    assert DIALECTS["sglang"].told(answer, ids, [1, 3], 4).top_ids.shape == (2, 4)
    SGLANG_BREAKS[what](answer)
    with pytest.raises((ValueError, KeyError, TypeError)):
        DIALECTS["sglang"].told(answer, ids, [1, 3], 4)


def test_infinities() -> None:
    entry = {str(t): {"logprob": -9999.0 if t > 1 else -0.5, "rank": t + 1} for t in range(3)}
    answer = {"choices": [{"prompt_token_ids": [4, 2], "prompt_logprobs": [None, entry]}]}
    told = DIALECTS["vllm"].told(answer, [4, 2], [1], 3)
    np.testing.assert_array_equal(told.top_logprobs, [[-0.5, -0.5, -np.inf]])
    np.testing.assert_array_equal(told.logprob, [-np.inf])


def test_a_closed_client_gives_up_at_once(server: Served) -> None:
    client = Client(parse_endpoint(server.url), QUICK)
    client.close()
    with pytest.raises(ServerError):
        client.get("/v1/models")
    assert server.asked == []


def test_what_does_not_answer_is_said() -> None:
    answers = VLLMAnswers(cases.teacher())
    answers.asleep = True
    patience = Patience(attempts=2, first=0.001, read=30.0, remark=0.2)
    with serving(answers) as server:
        served = reach(server, patience)
        server.fail(PATH, [Fault(wait=1.0)] * 4)
        said = r"server .*: /v1/completions \(1\d tokens, top 8\) has had no answer for \d\.\d+ s.*sleeps: wake it"
        with pytest.warns(OpdProbeWarning, match=said) as caught:
            list(served.scores(sequences(), cases.K))
    lines = [str(one.message) for one in caught]
    assert len(lines) <= 6  # at first and each time that the wait has doubled, not for each of four requests
    assert any("nor have 3 other requests" in line for line in lines)


@pytest.mark.parametrize("waits", ["retries", "hello"])
def test_what_is_tried_again_for_long_is_said(server: Served, waits: str) -> None:
    patience = Patience(attempts=4, first=0.2, longest=0.4, remark=0.15)
    served = reach(server, patience)
    server.fail(PATH, [Fault(503)] * 3)
    server.fail("/v1/models", [Fault(503)] * 2)
    with pytest.warns(OpdProbeWarning, match="has had no answer for .*it may be asleep, starting, or busy"):
        served.allowed(cases.K) if waits == "retries" else reach(server, patience)
