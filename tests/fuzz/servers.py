"""What servers answer, a file for each path."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from opd_probe.models.served.dialects import DIALECTS, Draw
from tests.fuzz.trees import Tree
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges
from tests.models.served.sglang_server import SGLangAnswers

K = 8


@cache
def _recorded() -> tuple[list[int], Any]:
    """The ids of the shortest recorded request of depth K, and its answer."""
    found = []
    for key, (status, answer) in Exchanges.read("vllm_teacher.jsonl").known.items():
        method, path, body = key.split(" ", 2)
        asked = json.loads(body) or {}
        if method == "POST" and status == 200 and asked.get("prompt_logprobs") == K and len(asked["prompt"]) > 3:
            found.append((asked["prompt"], answer))
        del path
    return min(found, key=lambda one: len(one[0]))


IDS: list[int] = _recorded()[0]


def _vllm(root: Path) -> list[Tree]:  # noqa: ARG001
    known = Exchanges.read("vllm_teacher.jsonl")
    listing, version = (known.find("GET", path, None)[1] for path in ("/v1/models", "/version"))
    token_ids = [5, 6, 1]
    drawn = {"choices": [{"prompt_token_ids": IDS, "token_ids": token_ids, "finish_reason": "stop",
                          "logprobs": {"token_logprobs": [-0.5, -1.0, -9999.0]}}]}  # fmt: skip
    answers = {"v1/models": listing, "version": version, "v1/completions": _recorded()[1], "drawn.json": drawn}
    return [{name: json.dumps(answer).encode() for name, answer in answers.items()}]


def _sglang(root: Path) -> list[Tree]:  # noqa: ARG001
    found = []
    for old in (False, True):
        server = SGLangAnswers(cases.teacher(), old=old)
        dialect = DIALECTS["sglang"]
        body = dialect.score_request({"id": "tiny"}, IDS, K)
        drawn = server.find("POST", "/generate", dialect.draw_request({"id": "tiny"}, IDS, Draw(3, 1.0, 0, [1])))[1]
        answers = {path.lstrip("/"): answer for path, answer in server.info.items()}
        answers |= {"v1/models": server.find("GET", "/v1/models", None)[1], "drawn.json": drawn}
        answers |= {"generate": server.find("POST", "/generate", body)[1]}
        found.append({name: json.dumps(answer).encode() for name, answer in answers.items()})
    return found


ANSWERS: dict[str, Callable[[Path], list[Tree]]] = {"vllm": _vllm, "sglang": _sglang}
"""By dialect, what a server of it answers."""
