"""What vLLM and SGLang are asked, and how their answers are read. Layouts as of vLLM 0.32 and SGLang 0.5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from opd_probe.models.served.answers import (
    ABOVE,
    NO_LOGPROBS,
    NoLogprobs,
    State,
    Told,
    id_of,
    list_of,
    logprob_of,
    read_states,
)

BAN = -100.0
"""The smallest bias that both servers take for a logit: e⁻¹⁰⁰ of the probability is left."""

Json = Mapping[str, Any]


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

    def broken_off(self, answer: Any) -> bool:
        """Whether the server ended the request before its time, as one does that is put to sleep."""
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

        def read(place: int) -> State:
            entry = {id_of(token): list_of(value, dict) for token, value in list_of(entries[place], dict).items()}
            # The token itself comes along whatever its rank.
            top = [(token, logprob_of(value["logprob"])) for token, value in entry.items() if id_of(value["rank"]) <= k]
            return top, logprob_of(entry[ids[place]]["logprob"])

        return read_states(read, places, ids, k)

    def broken_off(self, answer: Any) -> bool:
        try:
            return bool(_choice(answer).get("finish_reason") == "abort")
        except (ValueError, KeyError, TypeError):
            return False

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
        tokens = [id_of(token) for token in choice["token_ids"]]
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
        # An entry that is none says nothing of its id, and leaves its own state unknown.
        named = [int(entry[1]) if isinstance(entry, list) else token for entry, token in zip(tokens, ids, strict=True)]
        _same_ids(_unclipped(named, ids), ids, "input_token_logprobs")

        def read(place: int) -> State:
            top = [(id_of(token), logprob_of(value)) for value, token, *_ in list_of(tops[place], list)]
            return top, logprob_of(list_of(tokens[place], list)[0])

        return read_states(read, places, ids, k)

    def broken_off(self, answer: Any) -> bool:
        try:
            return bool(_reason(_meta(answer)) == "abort")
        except (ValueError, KeyError, TypeError):
            return False

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
        if meta.get("prompt_tokens", len(ids)) != len(ids):
            raise ValueError(f"meta_info.prompt_tokens is {meta['prompt_tokens']}, sent were {len(ids)} ids")
        return _drawn([id_of(entry[1]) for entry in entries], [_logprob(entry[0]) for entry in entries], _reason(meta))


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (VLLM(), SGLang())}


def _choice(answer: Any) -> Json:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise ValueError("has no choices, or not one")
    return dict(choices[0])


def _meta(answer: Any) -> Json:
    if isinstance(answer, list) and len(answer) == 1:  # some versions answer a list to a list of ids
        (answer,) = answer
    meta = answer.get("meta_info") if isinstance(answer, Mapping) else None
    if not isinstance(meta, Mapping):
        raise ValueError("has no meta_info")
    return dict(meta)


def _reason(meta: Json) -> Any:
    reason = meta.get("finish_reason")
    return reason.get("type") if isinstance(reason, Mapping) else reason


def _entries(answer: Json, name: str, ids: Sequence[int]) -> list[Any]:
    entries = answer.get(name)
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise ValueError(f"{name} is not a list of {len(ids)} entries, one for each token")
    return entries


def _adapter(model: Json) -> dict[str, Any]:
    """An adapter has a parent among the models of a server; its base is what answers without a name."""
    return {"lora_path": model["id"]} if model.get("parent") else {}


def _same_ids(told: Any, sent: Sequence[int], name: str) -> None:
    if not isinstance(told, list):
        raise ValueError(f"{name} is missing, so that nothing says which ids were scored")
    if list(told) != list(sent):
        raise ValueError(f"{name} are not the ids that were sent: the server changed the sequence")


def _unclipped(told: list[int], sent: Sequence[int]) -> list[int]:
    """SGLang writes 0 for the ids at the end of its vocabulary, where it keeps room for images: they count as told."""
    largest = max((token for token, given in zip(told, sent, strict=True) if token == given), default=-1)
    return [given if token == 0 and given > largest else token for token, given in zip(told, sent, strict=True)]


def _logprob(value: Any) -> float:
    """A sampled token's log-probability; NaN for null, which SGLang writes for what is not finite."""
    number = math.nan if value is None else logprob_of(value)
    if number > ABOVE:
        raise NoLogprobs(f"holds {number:.4g} among its log-probabilities, above 0; {NO_LOGPROBS}")
    return number


def _drawn(ids: list[int], logprobs: list[float], reason: str | None) -> Drawn:
    if not ids or len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} sampled ids with {len(logprobs)} log-probabilities")
    return Drawn(ids, logprobs, reason)
