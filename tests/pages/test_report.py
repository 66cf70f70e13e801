"""The page of a report against the traces that it is made of, and its text as text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.metrics.states import state_metrics
from opd_probe.plain import visible
from opd_probe.results import packing, report_page, report_states
from opd_probe.results.states import QUANTITIES, top_lists
from opd_probe.trace import Trace
from tests.pages.looking import Page, external_references
from tests.pages.reports import PROBES, STEPS, WORDS, K, Made, make_report, make_traces, unpacked
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::opd_probe.OpdProbeWarning")  # few prompts, overlaps of one token


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("own")
    return make_report(make_traces(root), root / "page")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("fixed")
    return make_report(make_traces(root, fixed=True), root / "page")


def samples(made: Made) -> dict[str, Any]:
    return dict(Page(made.html).data["samples"])


def rows_of(trace: Trace, index: int) -> slice:
    return slice(int(trace.rollout_offsets[index]), int(trace.rollout_offsets[index + 1]))


def test_nothing_is_loaded_from_anywhere_and_text_stays_text(own: Made) -> None:
    page = Page(own.html)
    assert external_references(own.html) == []
    assert page.all("img") == []
    assert len(page.all("script")) == 2
    (policy,) = [attributes["content"] for attributes, _ in page.all("meta") if "http-equiv" in attributes]
    assert "default-src 'none'" in policy
    for attributes in (attributes for _, attributes, _ in page.elements):
        assert not [name for name in attributes if name.startswith("on")]
    named = {text for text, _ in page.data["samples"]["texts"]}
    assert {visible(f" {probe}", keep="\n\t") for probe in PROBES} <= named
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e\u2066-\u2069]", own.html)


def test_a_verdict_never_stands_without_its_evidence(own: Made) -> None:
    page = Page(own.html)
    ((_, word),) = page.all("p", "word")
    ((_, evidence),) = page.all("p", "evidence")
    assert word in ("aligning", "aligned", "stagnating", "drifting", "unclear")
    means = [opd_probe.summarize(trace, K, resamples=0)["overlap_ratio"] for trace in own.traces]
    assert f"{means[0]:.3f} → {means[-1]:.3f}" in evidence
    assert "few prompts" in [text for _, text in page.all("strong")]


def test_the_read_outs_of_the_curves_are_those_of_the_traces(own: Made) -> None:
    data = Page(own.html).data
    for metric in ("overlap_ratio", "reverse_kl", "accuracy", "truncation_rate", "response_length"):
        stops = data["charts"][f"chart-{metric}"]["stops"]
        assert [stop["label"] for stop in stops] == [str(step) for step in STEPS]
        for stop, trace in zip(stops, own.traces, strict=True):
            row = opd_probe.summarize(trace, K)
            ((series, text),) = stop["texts"]
            value, low, high = (float(part) for part in re.findall(r"-?[\d.]+", text.replace("−", "-")))
            assert data["series"][series] == "mine"
            wanted = [row[metric], row[f"{metric}_lo"], row[f"{metric}_hi"]]
            assert [value, low, high] == pytest.approx(wanted, rel=0.02, abs=6e-3)


def test_shaded_states_are_those_of_the_traces(own: Made) -> None:
    found = samples(own)
    (group,) = found["groups"]
    assert [trace["step"] for trace in group["traces"]] == [str(step) for step in STEPS]
    assert {quantity["key"] for quantity in found["quantities"]} == {*QUANTITIES}
    tokenizer = tiny_tokenizer(words=WORDS)
    for shown, trace in zip(group["traces"], own.traces, strict=True):
        table = state_metrics(trace, K, QUANTITIES)
        texts = [found["texts"][entry] for entry in unpacked(found["packs"][shown["tokens"]], "<u4")]
        names = [found["names"][name] if name >= 0 else None for _, name in texts]
        start = 0
        for response in shown["responses"]:
            unit = group["units"][response["unit"]]["name"]
            prompt, number = re.fullmatch(r"prompt (p\d), response (\d)", unit).groups()  # type: ignore[union-attr]
            index = trace.rollouts.column("rollout_id").to_pylist().index(f"{prompt}/{int(number) - 1}")
            rows, row = rows_of(trace, index), trace.rollouts.slice(index, 1).to_pylist()[0]
            assert response["gaps"] == [[0, 1]]  # the masked one
            assert (response["states"], response["of"]) == (row["n_states"], row["n_states"])
            assert response["correct"] == (None if row["score"] is None else row["score"])
            assert response["cut"] == (row["finish_reason"] == "length")
            inside = slice(start + 1, start + response["n"])
            ids = trace.column("token_id")[rows].tolist()
            assert names[inside] == [visible(tokenizer.decode([token])) for token in ids]
            for quantity in found["quantities"]:
                codes = unpacked(found["packs"][shown["values"][quantity["key"]]], "u1")
                assert codes[start] == packing.UNKNOWN
                values = [quantity["table"][code] if code < 253 else math.nan for code in codes[inside]]
                wanted = table[quantity["key"]].to_numpy()[rows]
                np.testing.assert_allclose(values, wanted, rtol=0.051, atol=1e-3, err_msg=quantity["key"])
            start += response["n"]


def test_the_lists_at_states_are_those_of_the_traces(own: Made) -> None:
    found = samples(own)
    (group,) = found["groups"]
    tokenizer = tiny_tokenizer(words=WORDS)
    shown, trace = group["traces"][1], own.traces[1]
    arrays = {name: unpacked(found["packs"][shown["lists"][name]], dtype) for name, dtype in
              (("at", "<u4"), ("ids", "<u4"), ("own", "<u2"), ("other", "<u2"))}  # fmt: skip
    assert len(arrays["at"]) == trace.n_states  # so few that every state has its lists
    ids, own_codes, other_codes = (arrays[name].reshape(-1, 2, K) for name in ("ids", "own", "other"))
    expected = [
        dict(zip(("student", "teacher"), lists, strict=True))
        for lists in zip(*top_lists({name: trace.column(name) for name in trace.columns}, K), strict=True)
    ]
    for at, row in enumerate(expected):
        for side, name in enumerate(("student", "teacher")):
            entries = row[name]
            labels = [found["names"][(code >> 1) - 1] for code in ids[at, side]]
            assert labels == [visible(tokenizer.decode([entry["id"]])) for entry in entries]
            assert [bool(code & 1) for code in ids[at, side]] == [entry["shared"] for entry in entries]
            for codes, probability in ((own_codes, "own"), (other_codes, "other")):
                np.testing.assert_allclose(
                    np.exp(-codes[at, side].astype(float) / found["logs"]),
                    [entry[probability] for entry in entries],
                    rtol=2e-3,
                )


def test_one_can_jump_to_the_most_extreme_states(own: Made) -> None:
    found = samples(own)
    (group,) = found["groups"]
    tables = [state_metrics(trace, K, ["reverse_kl", "sampled_reward"]) for trace in own.traces]
    for kind, metric, best in (
        ("reverse_kl", "reverse_kl", "max"), ("lowest_reward", "sampled_reward", "min"),
        ("highest_reward", "sampled_reward", "max"),
    ):  # fmt: skip
        extreme = getattr(np, best)([getattr(table[metric], best)() for table in tables])
        place, response, token, value, name = group["extremes"][kind][0]
        assert value == pytest.approx(extreme, rel=1e-6)
        table, about = tables[place], group["traces"][place]["responses"][response]
        row = table.index[np.isclose(table[metric], extreme)][0]
        assert token == table["position"][row]
        prompt = group["units"][about["unit"]]["name"].split(",")[0].removeprefix("prompt ")
        assert table["prompt_id"][row] == prompt
        assert found["names"][name] == visible(WORDS[table["token_id"][row] - 3])


def test_the_timeline_of_two_steps_is_what_tokens_finds(
    fixed: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from opd_probe.cli.main import main

    paths = [trace.path for trace in (fixed.traces[0], fixed.traces[-1])]
    capsys.readouterr()
    words = ["tokens", str(paths[1]), "--against", str(paths[0]), "--k", str(K), "--out", str(tmp_path), "--format"]
    assert main([*words, "json"]) == 0
    lists = json.loads(capsys.readouterr().out)["tokens"]
    page = Page(fixed.html)
    shown = [text for attributes, text in page.all("code") if attributes.get("title", "").startswith("id ")]
    wanted = [row["token"] for name in ("entering", "leaving") for row in lists[name]]
    assert shown == [visible(token) for token in wanted]
    assert "every state" not in page.text
    assert "measured at the same states" in page.text
    rates = [f"{row['per_1000_states']:.3g}" for name in ("entering", "leaving") for row in lists[name]]
    assert all(rate in page.text for rate in rates)


def test_own_states_are_compared_by_rates(own: Made) -> None:
    assert "rates are compared" in Page(own.html).text


def test_without_text_no_word_is_in_the_file(own: Made, tmp_path: Path) -> None:
    traces = own.page.parent.parent / "out"
    bare = make_report(traces, tmp_path, "--no-text")
    page = Page(bare.html)
    found = page.data["samples"]
    assert (found["texts"], found["names"]) == ([], [])
    (group,) = found["groups"]
    assert all(trace["tokens"] is None and trace["lists"] is None for trace in group["traces"])
    assert all(
        unit["prompt"] is None and re.fullmatch(r"prompt \d+, response \d", unit["name"]) for unit in group["units"]
    )
    told = re.sub(r"<(style|script)>.*?</\1>", "", bare.html, flags=re.DOTALL)
    told = "".join(json.dumps(found)) + told
    for word in [word for word in WORDS if word not in ("12", "7", "+", "**", "answer", "thus", "<!--", "-->")]:
        assert word not in told, word
        assert visible(word) not in told, word
    assert page.all("table", "strips") == []
    assert "digits and numbers" in page.text
    # nor ids, from which anyone with the tokenizer has the words
    for trace, shown in zip(own.traces, group["traces"], strict=True):
        ids = trace.column("token_id")
        for at in range(len(found["packs"])):
            for dtype in ("<u4", "<u2", "u1"):
                values = unpacked(found["packs"][at], "u1")
                if len(values) % np.dtype(dtype).itemsize == 0:
                    assert not np.array_equal(values.view(dtype)[: len(ids)], ids)
        assert len(shown["responses"]) == 12


def test_a_page_that_would_be_too_large_has_fewer_responses_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = make_traces(tmp_path, prompts=20, length=40)
    own = make_report(traces, tmp_path / "whole")
    whole = len(own.html.encode())
    packed = len(json.dumps(samples(own), ensure_ascii=False).encode())
    sizes = []
    for room in (0.8, 0.3):
        limit = whole - int((1 - room) * packed)
        monkeypatch.setattr(report_page, "MOST_BYTES", limit)
        made = make_report(traces, tmp_path / str(room))
        assert len(made.html.encode()) <= limit
        page = Page(made.html)
        units = page.data["samples"]["groups"][0]["units"]
        left_out = [text for _, text in page.all("li") if text.startswith("Samples: ")]
        assert any(f"{len(units)} of 40 responses" in text for text in left_out) or len(units) == 40
        assert left_out
        sizes.append(len(units))
    assert sizes[1] < sizes[0] <= 40
    monkeypatch.setattr(report_page, "MOST_BYTES", 10_000)
    page = Page(make_report(traces, tmp_path / "none").html)
    assert page.data["samples"] is None
    assert any("not one response" in text for _, text in page.all("li"))


def test_long_responses_and_many_states_are_cut_and_said(
    own: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = own.page.parent.parent / "out"
    monkeypatch.setattr(report_states, "ROOM", 3)
    made = make_report(traces, tmp_path)
    for shown in samples(made)["groups"][0]["traces"]:
        assert max(response["states"] for response in shown["responses"]) == 3
        assert all(response["n"] == response["states"] + 1 for response in shown["responses"])
