"""Answers in the layout that SGLang 0.5.23's source writes, with numbers of a real tiny model. Not recorded: none ran.

``managers/scheduler_components/logprob_result_processor.py`` puts a null first and leaves out the state behind the last
token, and writes id 0 for ids from the vocabulary's size − 1 on; ``managers/tokenizer_manager.py`` makes triples of
log-probability, id and text; ``entrypoints/http_server.py`` has ``/model_info``, ``/server_info`` and ``/v1/models``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from tests.models.served.recorded_server import Exchanges


class SGLangAnswers(Exchanges):
    """Computes what a SGLang server would answer.

    Args:
        old: answer under the names that older versions have.
    """

    def __init__(self, model: Qwen2ForCausalLM, *, old: bool = False, adapter: str | None = None) -> None:
        super().__init__({})
        self.model = model
        self.weights = "7"
        prefix = "/get_" if old else "/"
        self.info: dict[str, Any] = {
            f"{prefix}model_info": {
                "model_path": "/models/tiny",
                "tokenizer_path": "/models/tiny",
                "weight_version": "7",
            },
            f"{prefix}server_info": {"version": "0.5.23", "api_key": "server-side-secret"},
        }
        self.cards = [{"id": "tiny", "owned_by": "sglang", "root": "tiny", "parent": None, "max_model_len": 128}]
        if adapter is not None:
            self.cards.append(
                {**self.cards[0], "id": adapter, "root": adapter, "parent": "tiny", "max_model_len": None}
            )

    def find(self, method: str, path: str, body: Any) -> tuple[int, Any]:  # noqa: ARG002
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.cards}
        if path in self.info:
            return 200, self.info[path]
        if path != "/generate":
            return 404, {"detail": "Not Found"}
        return 200, self._generate(body)

    @torch.no_grad()
    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, wanted = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        meta: dict[str, Any] = {"prompt_tokens": len(ids), "weight_version": self.weights}
        if "top_logprobs_num" in body:
            logs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)
            clipped = [token if token < logs.shape[1] - 1 else 0 for token in ids]
            own = [None, *(float(logs[t - 1, ids[t]]) for t in range(1, len(ids)))]
            top = logs[:-1].topk(body["top_logprobs_num"])
            pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            meta["input_token_logprobs"] = [[value, token, None] for value, token in zip(own, clipped, strict=True)]
            meta["input_top_logprobs"] = [None, *([[v, i, None] for v, i in zip(*pair, strict=True)] for pair in pairs)]
        drawn, entries, reason = list(ids), [], {"type": "length", "length": wanted}
        generator = torch.Generator().manual_seed(body["sampling_params"].get("sampling_seed", 0))
        for _ in range(wanted):
            logits = self.model(torch.tensor([drawn])).logits[0, -1].float()
            for token, bias in body["sampling_params"].get("logit_bias", {}).items():
                logits[int(token)] += bias
            p = torch.softmax(logits / body["sampling_params"]["temperature"], -1)
            drawn.append(int(torch.multinomial(p, 1, generator=generator)))
            entries.append([float(p[drawn[-1]].log()), drawn[-1], None])
            if drawn[-1] in body["sampling_params"]["stop_token_ids"]:
                reason = {"type": "stop", "matched": drawn[-1]}
                break
        meta |= {"output_token_logprobs": entries, "finish_reason": reason}
        return {"text": "", "output_ids": drawn[len(ids) :], "meta_info": meta}
