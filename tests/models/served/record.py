"""Record a real server's answers to what our client asks: ``python -m tests.models.served.record URL FILE WHAT``.

WHAT is ``teacher`` or ``student``. The server is vLLM's, started beside directories with the models of ``cases.py``::

    python -m vllm.entrypoints.openai.api_server --model tiny-teacher --dtype float32 --max-model-len 128

Every exchange goes through a proxy here, which writes it down.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import opd_probe
from opd_probe.models.outline import Outline
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import connect
from opd_probe.models.served.sampling import sample_from_server
from tests.models.served import cases

NOISE = ("id", "created")
"""Of a completion, what differs every time."""


def main(url: str, file: str, what: str) -> None:
    """Have the client ask the server at ``url`` and write the exchanges to ``file``."""
    seen: dict[str, dict[str, Any]] = {}

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on("GET", None)

        def do_POST(self) -> None:
            self.pass_on("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def pass_on(self, method: str, body: Any) -> None:
            answer = httpx.request(method, url + self.path, json=body, timeout=120)
            told = answer.json()
            if method == "POST":
                told = {name: value for name, value in told.items() if name not in NOISE}
            exchange = {"method": method, "path": self.path, "body": body, "status": answer.status_code, "answer": told}
            seen[json.dumps([method, self.path, body], sort_keys=True)] = exchange
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{proxy.server_port}"
    (ask_teacher if what == "teacher" else ask_student)(here)
    lines = [json.dumps(exchange, separators=(",", ":")) for exchange in seen.values()]
    Path(file).write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def ask_teacher(url: str) -> None:
    """A replay at the depth of the tests, one beyond the server's, and a model that is not there."""
    student = cases.student()
    opd_probe.replay(student, url, cases.rollouts(), k=cases.K)
    opd_probe.replay(student, url, cases.rollouts()[2:3], k=cases.WIDTH)
    served = connect(parse_endpoint(url))
    served.entry = {**served.entry, "id": "nowhere"}
    with suppress(opd_probe.OpdProbeError):
        served.allowed(cases.K)


def ask_student(url: str) -> None:
    """Samples of all ids, of allowed ones, and at another temperature."""
    served = connect(parse_endpoint(url))
    outline = Outline("tiny-student", None, cases.WIDTH, 128, cases.EOS)
    allowed = np.setdiff1d(np.arange(cases.WIDTH), cases.BANNED)
    sample_from_server(outline, served, cases.PROMPTS, **cases.SAMPLING)
    sample_from_server(outline, served, cases.PROMPTS, allowed_ids=allowed, **cases.SAMPLING)
    sample_from_server(outline, served, cases.PROMPTS[:1], temperature=0.5, **cases.SAMPLING)


if __name__ == "__main__":
    main(*sys.argv[1:])
