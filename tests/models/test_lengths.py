"""Models whose rotary factors depend on the length of a call: whose length decides is a choice, and is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.lengths import LengthFactors, has_length_factors
from opd_probe.models.loading import load_model
from opd_probe.models.positions import max_positions
from opd_probe.types import Prompt
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

BOUNDARY, SERVED = 24, 64
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
    "long_factor": [2.0 + 1.5 * i for i in range(8)], "original_max_position_embeddings": BOUNDARY,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": SERVED / BOUNDARY}
CONFIGS = {
    "longrope": Phi3Config(
        **SMALL, max_position_embeddings=SERVED, rope_parameters=LONGROPE, original_max_position_embeddings=BOUNDARY
    ),
    "dynamic": LlamaConfig(**SMALL, max_position_embeddings=BOUNDARY, rope_parameters=DYNAMIC),
}


@cache
def sharp(kind: str, seed: int) -> PreTrainedModel:
    """Weights large enough that the past matters."""
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / weight.shape[-1] ** 0.5)
    return model


@cache
def copy_of(model: Any) -> Any:
    """Another one of the same weights."""
    fresh = AutoModelForCausalLM.from_config(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    return fresh


@torch.no_grad()
def logprobs(model: Any, ids: Sequence[int], length: int) -> NDArray[np.float64]:
    """log p(· | ids), by a call of so many tokens: what comes behind ``ids`` is padding, which a causal model ignores.

    By a copy, which one call of one token puts back: with dynamic scaling it remembers how long earlier calls were.
    """
    fresh = copy_of(model)
    fresh(input_ids=torch.tensor([[3]]))
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))]])
    return fresh(input_ids=padded).logits[0, len(ids) - 1].double().log_softmax(-1).numpy()


def expected(model: Any, row: dict[str, Any], rule: str) -> list[float]:
    """One call for every state."""
    prompt, response = row["prompt_ids"], row["response_ids"]
    whole = len(prompt) + len(response)
    values = []
    for position, token in enumerate(response):
        ids = [*prompt, *response[:position]]
        length = {"prefix": len(ids), "whole": whole, "server": SERVED}[rule]
        values.append(float(logprobs(model, ids, length)[token]))
    return values


def some_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Rollouts on both sides of the boundary and across it, some with a prompt in common."""
    random = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return random.integers(3, 64, count).tolist()  # type: ignore[no-any-return]

    prompt = ids(14)
    rows = [{"id": f"shared {i}", "prompt_ids": prompt, "response_ids": ids(n)} for i, n in enumerate((9, 10, 12, 12))]
    rows += [{"id": f"apart {n}", "prompt_ids": ids(4), "response_ids": ids(n)} for n in (6, 19, 21, 23)]
    return [*rows, {"id": "long prompt", "prompt_ids": ids(30), "response_ids": ids(4)}]


@pytest.mark.parametrize("rule", ["prefix", "whole", "server"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_replay_under_each_rule(kind: str, rule: Literal["prefix", "whole", "server"]) -> None:
    student, teacher = sharp(kind, 1), sharp(kind, 2)
    rows = some_rows()
    for sequential in (False, True) if rule == "prefix" else (False,):
        trace = opd_probe.replay(student, teacher, rows, k=8, length_factors=rule, sequential=sequential)
        for model, column in ((student, "student_logprob"), (teacher, "teacher_logprob")):
            own = np.concatenate([expected(model, row, rule) for row in rows])
            np.testing.assert_allclose(trace.column(column), own, rtol=0, atol=1e-4)
    said = trace.provenance["length_factors"]
    across = sum(
        len(row["prompt_ids"]) + position <= BOUNDARY
        for row in rows
        for position in range(len(row["response_ids"]))
        if len(row["prompt_ids"]) + len(row["response_ids"]) > BOUNDARY
    )
    assert said["rule"] == rule
    assert said["student"] == {"kind": kind, "boundary": BOUNDARY, "straddling_states": across}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_rules_differ_where_they_should(kind: str) -> None:
    model, row = sharp(kind, 1), some_rows()[3]
    values = {rule: np.array(expected(model, row, rule)) for rule in ("prefix", "whole", "server")}
    before = len(row["prompt_ids"]) + np.arange(len(row["response_ids"])) <= BOUNDARY
    assert np.abs(values["prefix"] - values["whole"])[before].max() > 0.1
    assert np.abs(values["prefix"] - values["server"])[before].max() > 0.1


@pytest.mark.parametrize("rule", ["prefix", "whole", "server"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_are_drawn_from_the_prefix_or_as_a_server_draws(
    kind: str, rule: Literal["prefix", "whole", "server"]
) -> None:
    model = sharp(kind, 3)
    random = np.random.default_rng(1)
    prompts = [Prompt(str(n), ids=tuple(random.integers(3, 64, n).tolist())) for n in (6, 6, 19, 23, 27)]
    drawn = sample_rollouts(load_model(model), prompts, num_rollouts=2, max_new_tokens=7, length_factors=rule)
    for one in drawn:
        row = {"prompt_ids": list(one.prompt_ids), "response_ids": list(one.response_ids)}
        own = expected(model, row, "server" if rule == "server" else "prefix")
        np.testing.assert_allclose(one.logprobs or (), own, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_model_is_left_as_short_calls_find_it() -> None:
    """A module with dynamic scaling remembers the longest call; nothing of ours is left in it."""
    model = sharp("dynamic", 1)
    ids = torch.arange(3, 3 + BOUNDARY + 4)[None]
    before = model(input_ids=ids).logits
    opd_probe.replay(model, sharp("dynamic", 2), some_rows(), k=8)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_what_depends_on_a_length(tmp_path: Path) -> None:
    assert LengthFactors.of(tiny_model()) is None
    factors = LengthFactors.of(sharp("longrope", 0))
    assert factors is not None
    assert (factors.kind, factors.boundary, factors.longest) == ("longrope", BOUNDARY, SERVED)
    assert max_positions(CONFIGS["dynamic"]) == SERVED
    for name, model in (("plain", tiny_model()), ("longrope", sharp("longrope", 0)), ("dynamic", sharp("dynamic", 0))):
        place = save_checkpoint(tmp_path / name, model)
        assert has_length_factors(place) == has_length_factors(model) == (name != "plain")


def test_the_rule_decides_whether_a_stored_trace_is_used_again(tmp_path: Path) -> None:
    paths = {}
    for name, pair in (("plain", (tiny_model(seed=1), tiny_model(seed=2))), ("longrope", (sharp("longrope", 1),) * 2)):
        paths[name] = [
            save_checkpoint(tmp_path / name / str(number), model, tiny_tokenizer()) for number, model in enumerate(pair)
        ]
    rows = some_rows()[:6]
    for name, pair in paths.items():
        out = tmp_path / f"{name}.parquet"
        opd_probe.replay(*pair, rows, k=8, out=out)
        before = out.stat().st_mtime_ns
        opd_probe.replay(*pair, rows, k=8, out=out)
        assert out.stat().st_mtime_ns == before
        if name == "plain":
            opd_probe.replay(*pair, rows, k=8, out=out, length_factors="whole")
            assert out.stat().st_mtime_ns == before
            continue
        with pytest.warns(OpdProbeWarning, match="length_factors changed"):
            opd_probe.replay(*pair, rows, k=8, out=out, length_factors="whole")


def test_an_unknown_rule_is_one_line() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="length_factors = 'longest': expected one of prefix, whole, server"):
        opd_probe.replay(model, model, some_rows()[:1], length_factors="longest")  # type: ignore[arg-type]


def test_configurations_of_old_name_it_otherwise(tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path / "m", tiny_model())
    config = json.loads((place / "config.json").read_text())
    for stated in ({"type": "su", "long_factor": [1.0]}, {"rope_type": "dynamic", "factor": 2.0}):
        (place / "config.json").write_text(json.dumps({**config, "rope_scaling": stated}))
        assert has_length_factors(place)
