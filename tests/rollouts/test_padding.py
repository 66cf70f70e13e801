"""Padding of batches that were dumped as they stood: stripped where it is proved, told where not, never guessed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opd_probe
from opd_probe.errors import OpdProbeWarning
from opd_probe.rollouts.files import write_rollouts
from opd_probe.rollouts.padding import MARK, SpecialIds, special_ids_of, without_padding
from opd_probe.rollouts.prompts import encode_prompts
from opd_probe.types import Prompt, Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

PAD, EOS = 0, 1
SPECIAL = special_ids_of(tiny_tokenizer())
PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
RESPONSES = [[20, 21, EOS], [22, 23, 24, 25, 26], [27, EOS], [28, 29, 30]]


def plain() -> list[Rollout]:
    pairs = enumerate(zip(PROMPTS, RESPONSES, strict=True))
    return [Rollout(f"r{n}", tuple(p), tuple(r), extra={"k": n}) for n, (p, r) in pairs]


def left(ids: Any, width: int, pad: int = PAD) -> tuple[int, ...]:
    return (*[pad] * (width - len(ids)), *ids)


def right(ids: Any, width: int, pad: int = PAD) -> tuple[int, ...]:
    return (*ids, *[pad] * (width - len(ids)))


def rectangle(rollouts: list[Rollout], width: int = 4, long: int = 5) -> list[Rollout]:
    return [
        replace(r, prompt_ids=left(r.prompt_ids, width), response_ids=right(r.response_ids, long)) for r in rollouts
    ]


def ids(rollouts: list[Rollout]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tuple(r.prompt_ids), tuple(r.response_ids)) for r in rollouts]


def told(rollouts: list[Rollout], special: SpecialIds = SPECIAL) -> tuple[list[Rollout], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = without_padding(rollouts, special)
    return done, [str(warning.message) for warning in caught]


def test_a_batch_is_stripped_and_counted() -> None:
    done, (line,) = told(rectangle(plain()))
    assert ids(done) == ids(plain())
    assert line.startswith("rollouts: 13 tokens of padding stripped from 4 of 4 rows")
    assert [r.extra[MARK]["stripped"] for r in done] == [3, 3, 5, 2]
    assert told(done) == (done, [])  # what was looked at is left as it is


def test_each_batch_of_a_file_has_its_own_width() -> None:
    first, second = rectangle(plain()), rectangle([replace(r, id=f"{r.id}b") for r in plain()], 6, 7)
    unpadded = replace(plain()[0], id="one", prompt_ids=(40,) * 6, response_ids=(41,) * 7)
    done, _ = told([*first, *second, unpadded])
    assert ids(done) == [*ids(plain()), *ids(plain()), ids([unpadded])[0]]


def test_what_goes_token_by_token_is_cut_too() -> None:
    values = [np.linspace(-1, -2, len(r)).tolist() for r in RESPONSES]
    rollouts = [
        replace(r, logprobs=[*v, *[0.0] * (5 - len(v))], response_mask=right([1] * len(v), 5),
                extra={"teacher_logprobs": right(v, 5), "advantages": right(v, 5)})
        for r, v in zip(rectangle(plain()), values, strict=True)
    ]  # fmt: skip
    done, _ = told(rollouts)
    for rollout, value in zip(done, values, strict=True):
        assert list(rollout.logprobs or ()) == value
        assert rollout.response_mask == (1,) * len(value)
        assert list(rollout.extra["teacher_logprobs"]) == list(rollout.extra["advantages"]) == value


@pytest.mark.parametrize("field", ["prompt_attention_mask", "prompt_mask", "attention_mask"])
def test_a_mask_proves_it_whatever_the_pad_token_is(field: str) -> None:
    eos_is_pad = SpecialIds(pad=EOS, eos=frozenset({EOS}))
    rollouts = [
        replace(r, prompt_ids=left(r.prompt_ids, 6, EOS), extra={field: np.array(left([1] * len(r.prompt_ids), 6))})
        for r in plain()
    ]
    done, lines = told(rollouts, eos_is_pad)
    assert ids(done) == ids(plain())
    assert len(lines) == 1
    assert all(field not in r.extra for r in done)


def test_one_mask_for_prompt_and_response() -> None:
    rollouts = [
        replace(r, prompt_ids=left(r.prompt_ids, 6, EOS), response_ids=right(r.response_ids, 6, EOS),
                extra={"attention_mask": [*left([1] * len(r.prompt_ids), 6), *right([1] * len(r.response_ids), 6)]})
        for r in plain()
    ]  # fmt: skip
    assert ids(told(rollouts, SpecialIds(pad=EOS, eos=frozenset({EOS})))[0]) == ids(plain())


@pytest.mark.parametrize(
    "padded",
    [
        pytest.param([left(p, len(p) + 2) for p in PROMPTS], id="no rectangle"),
        pytest.param([left(p, 6) for p in PROMPTS], id="no row without"),
        pytest.param([left(PROMPTS[0], 7)], id="one row"),
    ],
)
def test_what_is_not_proved_stays_and_is_told_once(padded: list[tuple[int, ...]]) -> None:
    rollouts = [replace(r, prompt_ids=p) for r, p in zip(plain(), padded, strict=False)]
    done, (line,) = told(rollouts)
    assert ids(done) == ids(rollouts)
    assert f"{len(padded)} of {len(padded)} rows begin or end in the pad token <pad> (0)" in line
    assert all(r.extra[MARK]["unproved"] > 0 for r in done)


@pytest.mark.parametrize("special", [SpecialIds(PAD, bos=PAD), SpecialIds(PAD, eos=frozenset({PAD, EOS}))])
def test_a_pad_token_that_is_also_another_proves_nothing_by_its_shape(special: SpecialIds) -> None:
    rollouts = [replace(r, response_ids=r.response_ids, prompt_ids=left(r.prompt_ids, 4)) for r in plain()]
    done, (line,) = told(rollouts, special)
    assert ids(done) == ids(rollouts)
    assert "3 of 4 rows" not in line  # one of the pad tokens may be the BOS
    assert "2 of 4 rows" in line


def test_what_a_model_sampled_stays() -> None:
    """A token with a log-probability was sampled, and so was what ends a response that was cut off at its limit."""
    short, long = plain()[0], replace(plain()[1], response_ids=(22, 23, PAD, PAD, PAD), logprobs=[-1.0] * 5)
    rows = [
        replace(short, response_ids=(20, 21, 22, 23, 24)),
        long,
        replace(long, logprobs=None, finish_reason="length"),
    ]
    assert told(rows) == (rows, [])


def test_prompts_that_are_given_as_ids() -> None:
    padded = [Prompt(str(n), ids=left(p, 4)) for n, p in enumerate(PROMPTS)]
    with pytest.warns(OpdProbeWarning, match="prompts: 6 tokens of padding stripped from 3 of 4 rows"):
        done = encode_prompts(padded, tiny_tokenizer())
    assert [list(prompt.ids or ()) for prompt in done] == PROMPTS


@given(st.data())
def test_unpadding_is_the_inverse_of_padding(data: st.DataObject) -> None:
    tokens = st.lists(st.integers(3, 60), min_size=1, max_size=6)
    rows = data.draw(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5))
    rollouts = [Rollout(str(n), tuple(p), tuple(r)) for n, (p, r) in enumerate(rows)]
    whole = rectangle(rollouts, max(len(p) for p, _ in rows), max(len(r) for _, r in rows))
    assert ids(told(whole)[0]) == ids(rollouts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("student", "teacher")):
        save_checkpoint(root / name, tiny_model(seed=seed, hidden=16, layers=1), tiny_tokenizer())
    return str(root / "student"), str(root / "teacher")


def test_a_padded_file_has_the_numbers_of_the_plain_one(pair: tuple[str, str], tmp_path: Path) -> None:
    write_rollouts(tmp_path / "padded.parquet", rectangle(plain()))
    right_one = opd_probe.replay(*pair, plain(), k=4, dtype="float64")
    with pytest.warns(OpdProbeWarning, match="13 tokens of padding stripped"):
        trace = opd_probe.replay(*pair, tmp_path / "padded.parquet", k=4, dtype="float64")
    for name in ("reverse_kl", "student_logprob", "teacher_logprob", "position", "token_id"):
        np.testing.assert_allclose(trace.column(name), right_one.column(name), rtol=1e-6)


def test_the_doctor_counts_it_over_the_whole_file(pair: tuple[str, str]) -> None:
    def line(rollouts: list[Rollout], **more: Any) -> opd_probe.Finding:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpdProbeWarning)
            found = opd_probe.doctor(*pair, rollouts, k=4, **more)
        return next(finding for finding in found if finding.check == "padding")

    assert line(plain()).status == "ok"
    stripped = line(rectangle(plain()), max_rollouts=1)  # one row alone proves nothing
    assert (stripped.status, stripped.values["n_unproved"]) == ("warn", 0)
    assert stripped.values["n_stripped"] > 0
    unproved = line([replace(r, prompt_ids=left(r.prompt_ids, 6)) for r in plain()])
    assert (unproved.status, unproved.values["n_unproved"]) == ("fail", 4)
    endings = [replace(r, response_ids=(*r.response_ids, PAD)) for r in plain()]  # with and without an EOS before
    assert line(endings).values["n_unproved"] == 4


def test_eos_behind_eos_is_told_where_another_token_pads() -> None:
    """As a trainer leaves it that pads with EOS, beside a tokenizer that has a pad token of its own."""
    whole = [(5, 6, 7, 8), (5, 6, 7, EOS), (5, 6, EOS, EOS), (5, EOS, EOS, EOS)]
    rollouts = [replace(plain()[0], id=str(n), response_ids=one) for n, one in enumerate(whole)]
    done, (line,) = told(rollouts)
    assert ids(done) == ids(rollouts)
    assert "2 of 4 responses go on with EOS behind their EOS, 3 times, and nothing proves" in line
    assert [r.extra.get(MARK, {}).get("unproved", 0) for r in done] == [0, 0, 1, 2]
    sampled = [replace(r, logprobs=(-0.5,) * 4) for r in rollouts]
    masked = [replace(r, response_mask=(1,) * (4 - n) + (0,) * n) for n, r in enumerate(rollouts)]
    for known in (sampled, masked, [replace(r, finish_reason="length") for r in rollouts]):
        assert told(known)[1] == []
