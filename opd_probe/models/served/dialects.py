"""What vLLM and SGLang are asked, and how their answers are read. Layouts as of vLLM 0.32 and SGLang 0.5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CLAMPED = -9999.0
"""vLLM writes it for a log-probability of −inf, which JSON does not have."""

BAN = -100.0
"""The smallest bias that both servers take for a logit: e⁻¹⁰⁰ of the probability is left."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What a served model says of n states of one sequence.

    Attributes:
        top_ids: int32 [n, K], its most probable tokens in rank order; equal ones by id.
        top_logprobs: float32 [n, K], over its whole vocabulary.
        logprob: float32 [n], of the sampled tokens; NaN where it was not told.
    """

    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    logprob: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A response that was sampled: ids, their log-probabilities, and a server's word for why it ended."""

    ids: list[int]
    logprobs: list[float]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Draw:
    """How a response is to be sampled.

    Attributes:
        allowed: the only ids that may be sampled, which vLLM alone can be told; None: all.
        banned: ids that may not be sampled.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    stop_ids: Sequence[int]
    allowed: Sequence[int] | None = None
    banned: Sequence[int] = ()


class Dialect(Protocol):
    """One kind of server."""

    name: str
    path: str

    def score_request(self, model: Json, ids: Sequence[int], k: int) -> dict[str, Any]:
        """The body that asks for the top k at every token of ``ids``. ``model``: an entry of ``/v1/models``."""
        ...

    def told(self, answer: Any, ids: Sequence[int], places: Sequence[int], k: int) -> Told:
        """What an answer says of the tokens at some places of ``ids``, each given what stands before it.

        Raises:
            ValueError: it is of another layout; says what was expected.
        """
        ...

    def draw_request(self, model: Json, ids: Sequence[int], how: Draw) -> dict[str, Any]:
        """The body that asks for one sampled response to ``ids``."""
        ...

    def drawn(self, answer: Any, ids: Sequence[int]) -> Drawn:
        """The response in an answer. Raises as :meth:`told`."""
        ...


class VLLM:
    """vLLM's completions: token ids as the prompt, log-probabilities of the prompt's tokens."""

    name = "vllm"
    path = "/v1/completions"

    def score_request(self, model: Json, ids: Sequence[int], k: int) -> dict[str, Any]:
        return {
            "model": model["id"],
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": k,
            "return_token_ids": True,
        }

    def told(self, answer: Any, ids: Sequence[int], places: Sequence[int], k: int) -> Told:
        choice = _choice(answer)
        _same_ids(choice.get("prompt_token_ids"), ids, "prompt_token_ids")
        entries = _entries(choice, "prompt_logprobs", ids)
        tops, sampled = [], []
        for place in places:
            by_id = {int(token): value for token, value in entries[place].items()}
            # The token itself comes along whatever its rank.
            tops.append([(_logprob(v["logprob"]), token) for token, v in by_id.items() if int(v["rank"]) <= k])
            sampled.append(_logprob(by_id[ids[place]]["logprob"]))
        return _told(tops, sampled, k)

    def draw_request(self, model: Json, ids: Sequence[int], how: Draw) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model["id"],
            "prompt": list(ids),
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "seed": how.seed,
            # All stated: the server's own defaults may be those of the checkpoint's generation_config.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # of the EOS that the server finds by itself; stop_token_ids hold
            "stop_token_ids": list(how.stop_ids),
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        if how.allowed is not None:
            body["allowed_token_ids"] = list(how.allowed)
        if how.banned:
            body["logit_bias"] = {str(token): BAN for token in how.banned}
        return body

    def drawn(self, answer: Any, ids: Sequence[int]) -> Drawn:
        choice = _choice(answer)
        _same_ids(choice.get("prompt_token_ids"), ids, "prompt_token_ids")
        tokens = [int(token) for token in choice["token_ids"]]
        logprobs = [_logprob(value) for value in choice["logprobs"]["token_logprobs"]]
        return _drawn(tokens, logprobs, choice.get("finish_reason"))


class SGLang:
    """SGLang's own endpoint: token ids in, log-probabilities of the input's tokens in ``meta_info``."""

    name = "sglang"
    path = "/generate"

    def score_request(self, model: Json, ids: Sequence[int], k: int) -> dict[str, Any]:
        return {
            "input_ids": list(ids),
            **_adapter(model),
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
        }

    def told(self, answer: Any, ids: Sequence[int], places: Sequence[int], k: int) -> Told:
        meta = _meta(answer)
        tokens, tops = (_entries(meta, name, ids) for name in ("input_token_logprobs", "input_top_logprobs"))
        _same_ids(_unclipped([int(entry[1]) for entry in tokens], ids), ids, "input_token_logprobs")
        lists = [[(_logprob(value), int(token)) for value, token, *_ in tops[place]] for place in places]
        return _told(lists, [_logprob(tokens[place][0]) for place in places], k)

    def draw_request(self, model: Json, ids: Sequence[int], how: Draw) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "max_new_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "sampling_seed": how.seed,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": list(how.stop_ids),
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
        if how.banned:
            parameters["logit_bias"] = {str(token): BAN for token in how.banned}
        return {"input_ids": list(ids), **_adapter(model), "sampling_params": parameters, "return_logprob": True}

    def drawn(self, answer: Any, ids: Sequence[int]) -> Drawn:
        meta = _meta(answer)
        entries = meta["output_token_logprobs"]
        reason = meta.get("finish_reason")
        if isinstance(reason, Mapping):
            reason = reason.get("type")
        if meta.get("prompt_tokens", len(ids)) != len(ids):
            raise ValueError(f"meta_info.prompt_tokens is {meta['prompt_tokens']}, sent were {len(ids)} ids")
        return _drawn([int(entry[1]) for entry in entries], [_logprob(entry[0]) for entry in entries], reason)


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (VLLM(), SGLang())}


def _choice(answer: Any) -> Json:
    (choice,) = answer["choices"]
    return dict(choice)


def _meta(answer: Any) -> Json:
    if isinstance(answer, list):  # some versions answer a list to a list of ids
        (answer,) = answer
    return dict(answer["meta_info"])


def _entries(answer: Json, name: str, ids: Sequence[int]) -> list[Any]:
    entries = answer.get(name)
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise ValueError(f"{name} is not a list of {len(ids)} entries, one for each token")
    return entries


def _adapter(model: Json) -> dict[str, Any]:
    """An adapter has a parent among the models of a server; its base is what answers without a name."""
    return {"lora_path": model["id"]} if model.get("parent") else {}


def _same_ids(told: Any, sent: Sequence[int], name: str) -> None:
    if told is None:
        raise ValueError(f"{name} is missing, so that nothing says which ids were scored")
    if list(told) != list(sent):
        raise ValueError(f"{name} are not the ids that were sent: the server changed the sequence")


def _unclipped(told: list[int], sent: Sequence[int]) -> list[int]:
    """SGLang writes 0 for the ids at the end of its vocabulary, where it keeps room for images: they count as told."""
    largest = max((token for token, given in zip(told, sent, strict=True) if token == given), default=-1)
    return [given if token == 0 and given > largest else token for token, given in zip(told, sent, strict=True)]


def _logprob(value: Any) -> float:
    """A log-probability of an answer; NaN for null, which SGLang writes for what is not finite."""
    if value is None:
        return math.nan
    number = float(value)
    if number > 1e-3:
        raise ValueError(f"a log-probability is {number}, above 0")
    return -math.inf if number <= CLAMPED else number


def _told(tops: Sequence[Sequence[tuple[float, int]]], sampled: Sequence[float], k: int) -> Told:
    for top in tops:
        if len(top) != k or len({token for _, token in top}) != k or any(math.isnan(value) for value, _ in top):
            raise ValueError(f"a list of top tokens holds {len(top)} in place of {k} different ones with their values")
    ordered = [sorted(top, key=lambda entry: (-entry[0], entry[1])) for top in tops]
    shape = (len(tops), k)
    return Told(
        np.array([[token for _, token in top] for top in ordered], dtype=np.int32).reshape(shape),
        np.array([[value for value, _ in top] for top in ordered], dtype=np.float32).reshape(shape),
        np.array(sampled, dtype=np.float32),
    )


def _drawn(ids: list[int], logprobs: list[float], reason: str | None) -> Drawn:
    if not ids or len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} sampled ids with {len(logprobs)} log-probabilities")
    return Drawn(ids, logprobs, reason)
