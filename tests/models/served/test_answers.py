"""Lists of a server that are none: which leave a state unknown, what is said, and what no log-probability can be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opd_probe.models.served.answers import Told, misnormalised
from opd_probe.models.served.dialects import DIALECTS
from opd_probe.models.served.sample import distance, same
from tests.models.served import cases
from tests.models.served.sglang_server import SGLangAnswers
from tests.models.served.vllm_server import VLLMAnswers

IDS = [5, 9, 40, 12, 60, 33]
PLACES = [1, 3, 4, 5]
BROKEN = 4
"""The place whose entry is broken."""

Change = Callable[[list[Any], int, int], None]
"""Called with all entries, the place and the token that is there."""


def other(entry: dict[str, Any], token: int) -> dict[str, Any]:
    """What an entry says of some token of the list that is not the sampled one."""
    return next(value for key, value in entry.items() if key != str(token))


def drop(entries: list[Any], place: int, token: int) -> None:
    del entries[place][next(key for key in entries[place] if key != str(token))]


def renamed(name: str) -> Change:
    """Give a listed id another name."""

    def applied(entries: list[Any], place: int, token: int) -> None:
        key = next(key for key in entries[place] if key != str(token))
        entries[place][name] = entries[place].pop(key)

    return applied


def twice(entries: list[Any], place: int, token: int) -> None:
    first, second = [key for key in entries[place] if key != str(token)][:2]
    entries[place][f"0{first}"] = entries[place].pop(second)


def of_other(value: Any) -> Change:
    """Give a listed id another log-probability."""
    return lambda entries, place, token: other(entries[place], token).update(logprob=value)


STATES: dict[str, tuple[Change, str]] = {
    "a null": (of_other(None), "null in place of a log-probability"),
    "NaN": (of_other(math.nan), "NaN in place of a log-probability"),
    "infinity": (of_other(math.inf), "Infinity in place of a log-probability"),
    "text": (of_other("-1.5"), '"-1.5" in place of a log-probability'),
    "true": (of_other(True), "true in place of a log-probability"),
    "a list": (of_other([1]), "[1] in place of a log-probability"),
    "a number without end": (of_other(10**400), "10000000000000000000000… in place"),
    "a null list": (lambda e, place, _: e.__setitem__(place, None), "null in place of a list"),
    "a list in place of a mapping": (lambda e, place, _: e.__setitem__(place, [1]), "[1] in place of a list"),
    "an empty list": (lambda e, place, _: e.__setitem__(place, {}), "no "),
    "a shorter list": (drop, f"{cases.K - 1} ids in place of {cases.K}"),
    "an id twice": (twice, f"{cases.K - 1} ids in place of"),
    "a negative id": (renamed("-3"), '"-3" in place of an id'),
    "a huge id": (renamed("99999999999"), '"99999999999" in place of an id'),
    "a word": (renamed("word"), '"word" in place of an id'),
    "no rank": (lambda e, place, token: other(e[place], token).pop("rank"), "no "),
    "a rank that is text": (lambda e, place, token: other(e[place], token).update(rank="x"), '"x" in place'),
    "no token of its own": (lambda e, place, token: e[place].pop(str(token)), "no "),
    "nothing that is possible": (
        lambda e, place, _: [value.update(logprob=-9999.0) for value in e[place].values()],
        "no id that is possible",
    ),
}


@pytest.fixture(scope="module")
def vllm() -> Any:
    body = DIALECTS["vllm"].score_request({"id": "tiny"}, IDS, cases.K)
    return VLLMAnswers(cases.teacher()).find("POST", "/v1/completions", body)[1]


@pytest.fixture(scope="module")
def sglang() -> Any:
    body = DIALECTS["sglang"].score_request({"id": "tiny"}, IDS, cases.K)
    return SGLangAnswers(cases.teacher()).find("POST", "/generate", body)[1]


def check(told: Told, whole: Told, came: str) -> None:
    state = PLACES.index(BROKEN)
    assert list(told.faults) == [state]
    assert came in told.faults[state]
    assert (told.top_ids[state] == -1).all()
    assert np.isnan(told.top_logprobs[state]).all()
    assert np.isnan(told.logprob[state])
    others = np.arange(len(PLACES)) != state
    np.testing.assert_array_equal(told.top_ids[others], whole.top_ids[others])
    np.testing.assert_array_equal(told.logprob[others], whole.logprob[others])
    mended = told.mended(whole)
    assert not mended.faults
    np.testing.assert_array_equal(mended.top_logprobs, whole.top_logprobs)
    assert told.mended(told).faults == told.faults


@pytest.mark.parametrize("what", STATES)
def test_a_list_of_vllm_that_is_none(what: str, vllm: Any) -> None:
    change, came = STATES[what]
    whole = DIALECTS["vllm"].told(vllm, IDS, PLACES, cases.K)
    answer = copy.deepcopy(vllm)
    change(answer["choices"][0]["prompt_logprobs"], BROKEN, IDS[BROKEN])
    check(DIALECTS["vllm"].told(answer, IDS, PLACES, cases.K), whole, came)


SGLANG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an empty list": (lambda m: m["input_top_logprobs"].__setitem__(BROKEN, []), "0 ids in place of 8"),
    "a null list": (lambda m: m["input_top_logprobs"].__setitem__(BROKEN, None), "null in place of a list"),
    "pairs that are none": (lambda m: m["input_top_logprobs"].__setitem__(BROKEN, [3]), "of another layout"),
    "a null": (lambda m: m["input_top_logprobs"][BROKEN][2].__setitem__(0, None), "null in place of a log-prob"),
    "an id twice": (
        lambda m: m["input_top_logprobs"][BROKEN][2].__setitem__(1, m["input_top_logprobs"][BROKEN][3][1]),
        "one id twice",
    ),
    "a null beside the list": (
        lambda m: m["input_token_logprobs"].__setitem__(BROKEN, None),
        "null in place of a list",
    ),
    "no value of the token": (lambda m: m["input_token_logprobs"][BROKEN].__setitem__(0, None), "null in place"),
    "another value of the token": (
        lambda m: m["input_token_logprobs"][BROKEN].__setitem__(0, -0.001),
        "which is more probable than the last",
    ),
}


@pytest.mark.parametrize("what", SGLANG)
def test_a_list_of_sglang_that_is_none(what: str, sglang: Any) -> None:
    change, came = SGLANG[what]
    whole = DIALECTS["sglang"].told(sglang, IDS, PLACES, cases.K)
    answer = copy.deepcopy(sglang)
    change(answer["meta_info"])
    check(DIALECTS["sglang"].told(answer, IDS, PLACES, cases.K), whole, came)


def told(*rows: list[float]) -> Told:
    values = np.array(rows, dtype=np.float32)
    ids = np.tile(np.arange(values.shape[1], dtype=np.int32), (len(rows), 1))
    return Told(ids, values, values[:, -1])


def test_what_a_log_probability_can_be() -> None:
    even = [math.log(1 / 64)] * 8
    most = [math.log(1 / 8)] * 8
    assert misnormalised(told(even, most), 64) is None
    assert misnormalised(told([value + 1e-3 for value in most], [1e-4, *[-math.inf] * 7]), 64) is None  # rounding
    assert misnormalised(told(most, [value - 0.02 for value in even]), 64) == (
        1, "the 8 most probable tokens have a probability of 0.12, the least possible is 0.12")  # fmt: skip
    assert misnormalised(told([value - 0.02 for value in even]), 128) is None
    assert "the most possible is 1" in (misnormalised(told([value + 0.02 for value in most]), 64) or (0, ""))[1]
    assert misnormalised(told(even, [0.5, *[-9.0] * 7]), 64) == (1, "a log-probability is 0.5, above 0")
    assert misnormalised(told([1e30] * 8), 64) is not None
    unknown = Told(np.full((1, 8), -1, np.int32), np.full((1, 8), np.nan, np.float32),
                   np.full(1, np.nan, np.float32), {0: "null"})  # fmt: skip
    assert misnormalised(unknown, 64) is None


def test_which_answers_may_be_of_the_same_weights() -> None:
    def answer(shift: float, ids: int = 0) -> list[list[list[float]]]:
        return [[[ids + n, -1.0 - n + shift * (-1) ** n] for n in range(8)] for _ in range(15)]

    def never() -> list[Any]:
        raise AssertionError("the server is not asked again where there is nothing to decide")

    assert same(answer(0.0), answer(5e-4), never)
    assert same([], [], never)
    assert not same(answer(0.0), answer(0.0, ids=8), never)
    assert not same([], answer(0.0), never)
    assert not same("nonsense", answer(0.0), never)
    assert distance(answer(0.0), answer(0.02)) == pytest.approx(0.02)
    assert same(answer(0.0), answer(0.02), lambda: [answer(0.03), answer(0.02)])
    assert not same(answer(0.0), answer(0.5), lambda: [answer(0.53), answer(0.5)])
    assert not same(answer(0.0), answer(0.02), lambda: [answer(0.02)])  # a server without noise
