"""Where a server is: what is understood, what is refused, and what is never shown."""

from __future__ import annotations

import pytest

from opd_probe.errors import InputError
from opd_probe.models.served.endpoint import Endpoint, api_key, is_url, parse_endpoint, shown


@pytest.mark.parametrize(
    ("text", "url", "model", "login"),
    [
        ("http://localhost:8000", "http://localhost:8000", None, None),
        ("http://localhost:8000/v1/", "http://localhost:8000", None, None),
        ("HTTPS://Example.org/teachers/v1#Qwen/Qwen3-8B", "https://example.org/teachers", "Qwen/Qwen3-8B", None),
        ("http://[::1]:30000#a%20b", "http://[::1]:30000", "a b", None),
        ("http://joe:s%40cret@host:1/v1#m", "http://host:1", "m", ("joe", "s@cret")),
    ],
)
def test_urls(text: str, url: str, model: str | None, login: tuple[str, str] | None) -> None:
    assert is_url(text)
    assert parse_endpoint(text) == Endpoint(url, model, login)


def test_a_password_is_never_shown() -> None:
    endpoint = parse_endpoint("http://joe:secret@host:1#m")
    assert "secret" not in f"{endpoint} {endpoint!r} {shown('http://joe:secret@host:1#m')}"
    assert str(endpoint) == "http://host:1#m"
    assert shown("runs/a@b") == "runs/a@b"


@pytest.mark.parametrize(
    "text", ["http://", "http:///v1", "http://joe:secret@host:port", "http://joe:secret@h/?key=secret"]
)
def test_broken_urls_are_refused_without_their_secrets(text: str) -> None:
    with pytest.raises(InputError, match="expected http://host:port") as caught:
        parse_endpoint(text)
    assert "secret" not in str(caught.value)


def test_only_our_own_variable_holds_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPD_PROBE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-service")
    assert api_key() is None
    monkeypatch.setenv("OPD_PROBE_API_KEY", "ours")
    assert api_key() == "ours"
