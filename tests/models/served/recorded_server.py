"""A real HTTP server on this machine that answers with what a real vLLM answered, or misbehaves when asked to."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"

Json = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """In place of an answer: a status with a body, a body that is cut off, a closed connection, or a wait."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    wait: float = 0.0


@dataclass
class Exchanges:
    """What was asked and answered, by method, path and body."""

    known: dict[str, tuple[int, Any]]

    @classmethod
    def read(cls, name: str) -> Exchanges:
        """Those of a file under ``recorded``."""
        lines = (RECORDED / name).read_text(encoding="utf-8").splitlines()
        return cls(
            {_key(e["method"], e["path"], e["body"]): (e["status"], e["answer"]) for e in map(json.loads, lines)}
        )

    def find(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer. What was never recorded is the test's mistake, and not found."""
        unknown = {"error": {"message": f"not recorded: {method} {path} {json.dumps(body)[:300]}"}}
        return self.known.get(_key(method, path, body), (404, unknown))


def _key(method: str, path: str, body: Any) -> str:
    return f"{method} {path} {json.dumps(body, sort_keys=True)}"


@dataclass
class Served:
    """A running server.

    Attributes:
        faults: what the next requests of a path get in place of their answers, the first first; None: its answer.
        asked: every request so far: method, path, body, headers.
        most: the largest number of requests that were under way at the same time.
    """

    url: str
    exchanges: Exchanges
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list)
    most: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Event | None = None

    def fail(self, path: str, faults: Sequence[Fault | None]) -> None:
        """What the next requests of a path get."""
        self.faults[path] = deque(faults)

    def bodies(self, path: str) -> list[Any]:
        """The bodies of the requests of a path so far."""
        return [body for _, asked, body, _ in self.asked if asked == path]


@contextmanager
def serving(exchanges: Exchanges) -> Iterator[Served]:
    """Serve recorded exchanges on a free port of 127.0.0.1, a thread for each request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with served.lock:
                served.asked.append((method, self.path, body, dict(self.headers)))
                served.running += 1
                served.most = max(served.most, served.running)
                waiting = served.faults.get(self.path)
                fault = waiting.popleft() if waiting else None
            try:
                if served.gate is not None:
                    served.gate.wait(10)
                if fault is None:
                    status, answer = served.exchanges.find(method, self.path, body)
                    self._send(Fault(status, json.dumps(answer).encode()))
                else:
                    self._send(fault)
            finally:
                with served.lock:
                    served.running -= 1

        def _send(self, fault: Fault) -> None:
            if fault.wait:
                stopped.wait(fault.wait)
            if fault.close:
                self.close_connection = True
                return
            self.send_response(fault.status)
            for name, value in {"Content-Length": str(len(fault.body)), **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(fault.body)
            self.close_connection = "Content-Length" in fault.headers  # a wrong one leaves the connection unusable

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # beyond it the system forgets connections that a client takes for made
        daemon_threads = True

    stopped = threading.Event()
    server = Server(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}", exchanges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
