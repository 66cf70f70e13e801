"""HTTP with patience: what is worth another try is tried again, slower each time; the rest is told in one line."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from opd_probe.errors import InputError, ServerError, warn
from opd_probe.models.served.endpoint import KEY_VARIABLE, Endpoint, api_key
from opd_probe.models.served.watch import Watch

_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
"""What a server answers when it is busy, starting or out of memory."""

_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is tried and how long is waited in between (seconds).

    Each wait is twice the one before, up to ``longest``, and a random half of it is left out, so that requests that
    failed together do not come back together. A ``Retry-After`` of the server is kept to, up to ``longest``. What has
    not answered after ``remark`` is said, and again each time that the wait has doubled.
    """

    attempts: int = 7
    first: float = 0.5
    longest: float = 30.0
    connect: float = 10.0
    read: float = 600.0
    remark: float = 60.0

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """The wait after the attempt of this number, counted from 0."""
        if retry_after is not None:
            return min(max(retry_after, 0.0), self.longest)
        return float(min(self.longest, self.first * 2**attempt) * random.uniform(0.5, 1.0))


class Refused(ServerError):
    """The server understood a request and will not do it. ``status`` and what it said."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request; see :meth:`Client.post`."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    size: str = ""
    broken_off: Callable[[Any], bool] = lambda _: False


class Client:
    """Requests to one server, from any thread. Close it, or use it as a context manager."""

    def __init__(self, endpoint: Endpoint, patience: Patience | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise InputError(f"server {endpoint}: httpx is not installed; pip install httpx") from None
        self.endpoint = endpoint
        self.patience = patience or Patience()
        key = api_key()
        self._secrets = [secret for secret in (key, *(endpoint.login or ())) if secret]
        headers = {} if key is None or endpoint.login else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(self.patience.read, connect=self.patience.connect)
        if key is not None and not (key.isascii() and key.isprintable()):  # the library's error would show it
            raise InputError(f"server {endpoint}: {KEY_VARIABLE} holds characters that no key has")
        try:
            httpx.URL(endpoint.url)
            # Certificates take a while to load, and http has none.
            secure = endpoint.url.startswith("https:")
            self._http = httpx.Client(headers=headers, auth=endpoint.login, timeout=timeout, verify=secure)
        except httpx.InvalidURL as error:
            raise InputError(f"server {endpoint}: is no address ({error}); expected http://host:port") from None
        except (ValueError, ImportError) as error:  # of a proxy that the environment names
            raise InputError(f"server {endpoint}: cannot be asked ({self._brief(str(error))})") from None
        self._over = threading.Event()
        self._running = 0
        self._lock = threading.Lock()
        self._watch = Watch(self.patience.remark, self._remark)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def give_up(self) -> None:
        """No request is tried again from now on; those that are under way may end."""
        self._over.set()
        self._watch.end()

    def close(self) -> None:
        """Give up. Connections are closed once no request is under way: not beneath a thread that reads from one."""
        self.give_up()
        with self._lock:
            if not self._running:
                self._http.close()

    def get(self, path: str, *, attempts: int | None = None) -> Any:
        """The JSON at a path. Raises as :meth:`post`."""
        return self._ask(_Asked("GET", path), attempts)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        attempts: int | None = None,
        size: str = "",
        broken_off: Callable[[Any], bool] = lambda _: False,
    ) -> Any:
        """The JSON that a server answers to ``body``.

        Args:
            size: of the request, in words, for what is said of it.
            broken_off: whether an answer is none yet, so that it is asked for again.

        Raises:
            Refused: the server says that it will not.
            ServerError: no usable answer after all attempts.
        """
        return self._ask(_Asked("POST", path, body, size, broken_off), attempts)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._over.is_set() and not self._running:
                    self._http.close()

    def _ask(self, asked: _Asked, attempts: int | None) -> Any:
        with self._under_way(), self._watch.over(f"{asked.path}{f' ({asked.size})' if asked.size else ''}"):
            return self._patiently(asked, attempts or self.patience.attempts)

    def _remark(self, what: str, waited: float, others: int) -> None:
        """Say that a request is still waited for. Called from another thread."""
        more = f", nor have {others} other requests" if others else ""
        state = "it may be asleep, starting, or busy"
        # A server that does not tell has its reasons, of which there is nothing to say.
        with suppress(Exception), self._under_way():
            told = self._http.get(f"{self.endpoint.url}/is_sleeping", timeout=self.patience.connect)
            if told.status_code == 200 and told.json()["is_sleeping"]:
                state = "it says that it sleeps: wake it up (vLLM: POST /wake_up)"
        if not self._over.is_set():
            warn(
                f"server {self.endpoint}: {what} has had no answer for {waited:.3g} s{more}; it is still waited for; "
                f"{state}"
            )

    def _patiently(self, asked: _Asked, attempts: int) -> Any:
        import httpx

        what, path = "", asked.path
        for attempt in range(attempts):
            retry_after = None
            try:
                response = self._http.request(asked.method, self.endpoint.url + path, json=asked.body)
                if response.status_code == 200:
                    answer = response.json()
                    if not asked.broken_off(answer):
                        return answer
                    what = "breaks off (the server says abort)"
                else:
                    what = f"answers {response.status_code} ({self._brief(response.text)})"
                    if response.status_code not in _AGAIN:
                        raise self._refused(path, response.status_code, response.text)
                    retry_after = _seconds(response.headers.get("Retry-After"))
            except httpx.RequestError as error:
                what = f"{_failures(error)} ({self._brief(str(error))})"
            except (ValueError, RecursionError):  # not JSON, or not even text
                what = "answers 200 with something that is not JSON"
            except RuntimeError:  # httpx says so of a client that is closed
                if not self._over.is_set():
                    raise
                what = "is not asked any more"
            last = attempt + 1 == attempts
            if self._over.is_set() or (not last and self._over.wait(self.patience.delay(attempt, retry_after))):
                break
        advice = "is it running, and is this its address?"
        if asked.method == "POST":
            advice = "what it told before is kept, and the same command goes on from there"
        raise ServerError(f"server {self.endpoint}: {path} {what}, {attempt + 1} times; {advice}")

    def _refused(self, path: str, status: int, text: str) -> Refused:
        said = self._brief(text)
        advice = "check the address"
        if status in (401, 403):
            advice = f"set {KEY_VARIABLE} to the key of the server"
        elif status == 404:
            advice = "check the address and the model's name"
        elif status in (400, 413, 422):
            advice = "see the server's log"
        elif 300 <= status < 400:
            advice = "give the address that it points to"
        return Refused(f"server {self.endpoint}: {path} answers {status} ({said}); {advice}", status, said)

    def _brief(self, text: str) -> str:
        """What a server said, on one line, without our secrets should it repeat them."""
        line = " ".join(text.split())
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _seconds(value: str | None) -> float | None:
    """A ``Retry-After`` in seconds; one that is a date is left to our own rule."""
    try:
        found = math.nan if value is None else float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _failures(error: Exception) -> str:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return "does not answer in time"
    if isinstance(error, httpx.ConnectError):
        return "cannot be reached"
    return "breaks off"
