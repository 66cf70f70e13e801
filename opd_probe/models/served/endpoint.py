"""Where a served model is: a URL without its secrets, and the secrets beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from opd_probe.errors import InputError

KEY_VARIABLE = "OPD_PROBE_API_KEY"
"""The environment variable that holds the key of a server. No other is read: a key that was made for one service should
not reach whatever server a manifest names."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and the model that is meant on it.

    Attributes:
        url: scheme, host, port and path, without ``/v1``, credentials and model.
        model: the name after ``#`` in the URL; None: the only one that the server has.
        login: user and password that stood in the URL. Never shown.
    """

    url: str
    model: str | None = None
    login: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.url if self.model is None else f"{self.url}#{self.model}"


def is_url(text: object) -> bool:
    """Whether a model is named by a URL."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def parse_endpoint(text: str) -> Endpoint:
    """``http://host:port``, with or without ``/v1`` behind it, and ``#model-name`` where a server has several.

    Raises:
        InputError: not such a URL. The message shows no credentials.
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if not host or parts.query:
        what = "has a query" if parts.query else "is not a whole URL"
        raise InputError(f"server {shown(text)}: {what}; expected http://host:port, or http://host:port#model-name")
    place = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    url = f"{parts.scheme.lower()}://{place}{'' if port is None else f':{port}'}{path}"
    login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return Endpoint(url, unquote(parts.fragment) or None, login)


def shown(text: str) -> str:
    """What a user wrote as a model, for a message: a URL, whole or broken, without what may be a password in it."""
    if not is_url(text):
        return text
    scheme, _, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".partition("?")[0]


def api_key() -> str | None:
    """The key that requests carry, from the environment; None: they carry none."""
    return os.environ.get(KEY_VARIABLE, "").strip() or None
