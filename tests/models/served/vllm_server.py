"""Answers in the layout that vLLM 0.32's source writes, with numbers of a real tiny model, and faults when asked to.

``v1/worker/gpu_model_runner.py`` scores prompts by ``logprobs_mode``, the token itself first, of which
``v1/engine/logprobs.py`` makes a mapping of ids; ``entrypoints/openai/models/serving.py`` writes cards, those of
adapters without a length; ``entrypoints/rl/online`` and ``entrypoints/serve/dev/sleep`` have ``/weight_info`` and
``/is_sleeping``. What was recorded of a real one is in ``recorded``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from tests.models.served.recorded_server import Exchanges

Change = Callable[[dict[str, Any], dict[str, Any]], None]


class VLLMAnswers(Exchanges):
    """Computes what a vLLM server would answer.

    Attributes:
        model: what scores, and samples where ``cached`` is None. May be replaced.
        cached: what samples in its place, as where a prefix cache holds what other weights made.
        version: what ``/weight_info`` tells; None: it is not there, as without the development mode.
        asleep: what ``/is_sleeping`` tells; None: likewise.
        raw: tell logits in place of log-probabilities, less a constant.
        noise: nats that log-probabilities are off by, another way each time.
        change: what is done to each answer to a completion, with its request.
    """

    def __init__(self, model: Qwen2ForCausalLM, *, adapters: tuple[str, ...] = (), context: int | None = 128) -> None:
        super().__init__({})
        self.model = model
        self.cached: Qwen2ForCausalLM | None = None
        self.version: str | None = None
        self.asleep: bool | None = None
        self.raw: float | None = None
        self.noise = 0.0
        self.change: Change | None = None
        self.context = context
        base = {"id": "tiny", "owned_by": "vllm", "root": "/models/tiny", "parent": None, "max_model_len": context}
        self.cards = [base] + [
            {**base, "id": name, "root": f"/models/{name}", "parent": "tiny", "max_model_len": None}
            for name in adapters
        ]
        self._generator = torch.Generator().manual_seed(0)

    def find(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        optional = {"/weight_info": ("weight_version", self.version), "/is_sleeping": ("is_sleeping", self.asleep)}
        if path in optional and optional[path][1] is not None:
            return 200, dict([optional[path]])
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.cards}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if (method, path) != ("POST", "/v1/completions"):
            return 404, {"detail": "Not Found"}
        if self.context is not None and len(body["prompt"]) >= self.context:
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        answer = self._completed(body)
        if self.change is not None:
            self.change(answer, body)
        return 200, answer

    @torch.no_grad()
    def _completed(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, k = body["prompt"], body.get("prompt_logprobs")
        choice: dict[str, Any] = {"index": 0, "text": "", "prompt_token_ids": ids, "prompt_logprobs": None}
        if k is not None:
            scores = self._scores(self.model(torch.tensor([ids])).logits[0])
            choice["prompt_logprobs"] = [None, *(_entry(scores[t - 1], ids[t], k) for t in range(1, len(ids)))]
        new = body["max_tokens"] if self.context is None else min(body["max_tokens"], self.context - len(ids))
        drawn, values = self._drawn(ids, new, body) if k is None else ([ids[-1]], [0.0])
        stopped = drawn[-1] in body.get("stop_token_ids", ())
        choice |= {"token_ids": drawn, "logprobs": {"token_logprobs": values}}
        choice["finish_reason"] = "stop" if stopped else "length"
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float() + self.noise * torch.randn(logits.shape, generator=self._generator)
        return torch.log_softmax(logits, -1) if self.raw is None else logits - self.raw

    def _drawn(self, ids: list[int], new: int, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        model, generator = self.cached or self.model, torch.Generator().manual_seed(body["seed"] % 2**31)
        drawn, values = list(ids), []
        for _ in range(new):
            logits = model(torch.tensor([drawn])).logits[0, -1]
            values.append(self._scores(logits))
            biased = logits.float().clone()
            for token, bias in body.get("logit_bias", {}).items():
                biased[int(token)] += bias
            p = torch.softmax(biased / body["temperature"], -1)
            drawn.append(int(torch.multinomial(p, 1, generator=generator)))
            values[-1] = float(values[-1][drawn[-1]])
            if drawn[-1] in body["stop_token_ids"]:
                break
        return drawn[len(ids) :], values


def _entry(scores: torch.Tensor, token: int, k: int) -> dict[str, Any]:
    top = scores.topk(k)
    rank = int((scores >= scores[token]).sum())
    found = {str(token): {"logprob": float(scores[token]), "rank": rank, "decoded_token": None}}
    for place, (value, one) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
        found[str(one)] = {"logprob": value, "rank": place, "decoded_token": None}
    return found
