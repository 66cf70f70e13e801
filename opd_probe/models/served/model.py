"""A model on a server: who it says it is, how deep its lists go, and what it says of sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opd_probe.errors import InputError, ServerError
from opd_probe.models.served.answers import NoLogprobs, Told
from opd_probe.models.served.client import Client, Patience, Refused
from opd_probe.models.served.dialects import DIALECTS, Dialect
from opd_probe.models.served.endpoint import Endpoint
from opd_probe.models.served.sample import IDS, REPEATS, SHORT, Sample, same, sample_of
from opd_probe.models.served.workers import few_at_a_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONCURRENCY = 4
"""Requests at a time: log-probabilities of a long prompt over the whole vocabulary fill a server's memory."""

HELLO = 3
"""Attempts of the first request: a wrong address should show soon."""

_Answer = TypeVar("_Answer")


@dataclass
class ServedModel:
    """A model on a server, as it describes itself.

    Attributes:
        endpoint: where it is.
        dialect: how it is talked to.
        entry: what ``/v1/models`` says of it.
        details: what else the server says that tells one model from another.
        parent: of an adapter, what ``/v1/models`` says of the model that it was put on.
        version: of the server's software, when it says.
        tokenizer: as far as the client knows one; the server is never asked to tokenise.
    """

    endpoint: Endpoint
    dialect: Dialect
    entry: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    patience: Patience | None = None
    parent: Mapping[str, Any] = field(default_factory=dict)
    _limits: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _sample: Sample | None = field(default=None, init=False, repr=False)

    @property
    def model(self) -> str:
        """The name under which the server has it."""
        return str(self.entry["id"])

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.model} at {self.endpoint.url}"

    @property
    def width(self) -> None:
        """The width of its output layer, which a server does not tell."""
        return

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and what follows it, as far as the server tells: of an adapter as its parent."""
        for entry in (self.entry, self.parent):
            length = entry.get("max_model_len")
            if isinstance(length, int) and not isinstance(length, bool) and length > 0:
                return length
        return None

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest sequence that it scores: one position is kept for a new token."""
        return None if self.context is None else self.context - 1

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that say what was asked, for provenance. No secrets."""
        return {
            "source": "served",
            "url": self.endpoint.url,
            "model": self.model,
            "server": f"{self.dialect.name} {self.version or 'of unknown version'}",
            "root": self.entry.get("root"),
            **self.details,
            "normalised_over": "its whole vocabulary, not the shared one",
        }

    @property
    def made_by(self) -> str:
        """What a rollout that it samples records as its sampler."""
        return f"{self.dialect.name} {self.version or 'of unknown version'}, served"

    @property
    def digest(self) -> str:
        """sha256 over what the server says the model is, wherever it is served: names, not weights."""
        stated = [self.model, self.entry.get("root"), self.entry.get("parent"), sorted(self.details.items())]
        if self.parent:
            stated.append(self.parent.get("root"))
        return "served:" + hashlib.sha256(json.dumps(stated, default=str).encode()).hexdigest()

    def recognised(self, known: Iterable[Sample]) -> Sample:
        """What the server answers to a fixed sequence: the first of the answers that are known from before, if its
        weights may be those of then, else a new one. To be asked after :meth:`allowed`.

        Raises:
            ServerError: as of :meth:`scores`.
        """
        own = self._sample or []
        return next((sample for sample in known if same(sample, own, self._answered_again)), own)

    def look_again(self) -> None:
        """Ask anew what the server says of its weights and answers, since they may have been replaced.

        Raises:
            ServerError: as of :meth:`scores`.
        """
        if not self._limits:
            return
        with Client(self.endpoint, self.patience) as client:
            if "weight_version" in self.details:
                self.details = {**self.details, "weight_version": weight_version(client, self.dialect.name)}
            self._probe(client, max(self._limits.values()))

    def _answered_again(self) -> list[Sample]:
        k = max(self._limits.values(), default=1)
        with Client(self.endpoint, self.patience) as client:

            def ask(_: int) -> Sample:
                return sample_of(self.told(client, IDS, range(1, len(IDS)), k))

            return [one for _, one in few_at_a_time(ask, range(REPEATS), REPEATS, client.give_up)]

    def asked(self, k: int) -> bool:
        """Whether the server has been asked for lists of depth ``k`` already."""
        return k in self._limits

    def allowed(self, k: int) -> int:
        """How deep a top list the server gives of the ``k`` that are wanted. Asks it once.

        Raises:
            ServerError: it cannot be asked, or refuses for another reason.
        """
        if k not in self._limits:
            with Client(self.endpoint, self.patience) as client:
                self._limits[k] = self._probe(client, k)
        return self._limits[k]

    def _probe(self, client: Client, k: int, ids: Sequence[int] = IDS) -> int:
        try:
            told = self.told(client, ids, range(1, len(ids)), k)
        except Refused as refusal:
            limit = stated_limit(refusal.said)
            if limit is not None and 1 <= limit < k:
                return self._probe(client, limit, ids)
            if limit is None and refusal.status in (400, 422) and ids != SHORT:
                return self._probe(client, k, SHORT)  # of fewer tokens or ids than anyone would serve
            raise
        self._sample = sample_of(told) if ids == IDS else None
        return k

    def told(self, client: Client, ids: Sequence[int], places: Sequence[int], k: int) -> Told:
        """What the server says of one sequence. States that it leaves unknown are asked about once more.

        Raises:
            ServerError: as of :meth:`scores`.
        """
        told = self._asked_once(client, ids, places, k)
        return told.mended(self._asked_once(client, ids, places, k)) if told.faults else told

    def _asked_once(self, client: Client, ids: Sequence[int], places: Sequence[int], k: int) -> Told:
        body, size = self.dialect.score_request(self.entry, ids, k), f"{len(ids):,} tokens, top {k}"
        answer = client.post(self.dialect.path, body, size=size, broken_off=self.dialect.broken_off)
        self._check_weights(answer)
        return self.read(lambda: self.dialect.told(answer, ids, places, k))

    def scores(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], k: int, at_once: int = CONCURRENCY
    ) -> Iterator[tuple[int, Told]]:
        """Ask about sequences, a few at a time, and yield (index, what it says) as the answers come.

        Args:
            sequences: the ids of each, and the places in it whose tokens are asked about, each given what stands
                before it. Looked up one by one, from threads.
            k: depth of the lists, at most what :meth:`allowed` gave.

        Raises:
            ServerError: no usable answer, with the index of the sequence; or the weights changed meanwhile. What came
                before has been yielded.
        """
        with Client(self.endpoint, self.patience) as client:

            def ask(index: int) -> Told:
                ids, places = sequences[index]
                try:
                    return self.told(client, ids, places, k)
                except ServerError as error:
                    error.index = index
                    raise

            yield from few_at_a_time(ask, range(len(sequences)), at_once, client.give_up)
        if len(sequences):
            with Client(self.endpoint, self.patience) as client:
                self._check_meanwhile(client, k)

    def _check_meanwhile(self, client: Client, k: int) -> None:
        """Refuse answers of weights that were put in while they came.

        Raises:
            ServerError: the server has other weights now.
        """
        before, version = self._sample, self.details.get("weight_version")
        now = weight_version(client, self.dialect.name) if version is not None else None
        if version is not None and now not in (None, version):
            raise self._changed(f"from version {version!r} to {now!r} ")
        if before is None:
            return
        after = sample_of(self.told(client, IDS, range(1, len(IDS)), k))
        if not same(before, after, self._answered_again):
            raise self._changed("")

    def _changed(self, how: str) -> ServerError:
        return ServerError(
            f"server {self.endpoint}: its weights changed {how}meanwhile; give the command again, which starts anew "
            "with these"
        )

    def _check_weights(self, answer: Any) -> None:
        """Refuse the answer of weights that were put in meanwhile, which SGLang tells."""
        before = self.details.get("weight_version")
        meta = answer.get("meta_info") if isinstance(answer, Mapping) else None
        now = meta.get("weight_version", before) if isinstance(meta, Mapping) else before
        if now != before:
            raise self._changed(f"from version {before!r} to {now!r} ")

    def read(self, read: Callable[[], _Answer]) -> _Answer:
        """What an answer says.

        Raises:
            ServerError: it is of another layout.
        """
        try:
            return read()
        except NoLogprobs as error:
            raise ServerError(f"server {self.endpoint}: the answer of {self.dialect.path} {error}") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ServerError(
                f"server {self.endpoint}: the answer of {self.dialect.path} {what}; expected the layout of "
                f"{self.dialect.name}"
            ) from None


def stated_limit(said: str) -> int | None:
    """The depth that a server's refusal names as its largest, as vLLM words it."""
    import re

    found = re.search(r"max allowed: (\d+)", said)
    return None if found is None else int(found.group(1))


def connect(
    endpoint: Endpoint, tokenizer: PreTrainedTokenizerBase | None = None, patience: Patience | None = None
) -> ServedModel:
    """Ask a server which models it has and which software it is.

    Args:
        tokenizer: the model's own, when the user names it.

    Raises:
        ServerError: it cannot be reached, or is neither vLLM nor SGLang.
        InputError: it has several models and none is named, or not the one that is.
    """
    with Client(endpoint, patience) as client:
        models = _models(client, endpoint)
        entry = chosen(endpoint, models)
        dialect, details, version = _kind(client, endpoint, entry)
    parent = next((one for one in models if one["id"] == entry.get("parent") and one is not entry), {})
    return ServedModel(endpoint, dialect, entry, details, version, tokenizer, patience, parent)


def list_models(endpoint: Endpoint, patience: Patience | None = None) -> list[Mapping[str, Any]]:
    """What a server has, as ``/v1/models`` says.

    Raises:
        ServerError: it cannot be reached, or lists nothing.
    """
    with Client(endpoint, patience) as client:
        return _models(client, endpoint)


def _models(client: Client, endpoint: Endpoint) -> list[Mapping[str, Any]]:
    answer = client.get("/v1/models", attempts=HELLO)
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    whole = isinstance(entries, list) and all(isinstance(e, Mapping) and isinstance(e.get("id"), str) for e in entries)
    if not whole or not entries:
        raise ServerError(f"server {endpoint}: /v1/models lists no models; expected vLLM or SGLang there")
    return list(entries)


def chosen(endpoint: Endpoint, models: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry of the model that is meant.

    Raises:
        InputError: it is not clear which.
    """
    names = [str(entry["id"]) for entry in models]
    if endpoint.model is not None:
        for entry in models:
            if entry["id"] == endpoint.model:
                return entry
        raise InputError(f"server {endpoint}: has no model {endpoint.model!r}; it has {', '.join(names)}")
    # vLLM lists one model under as many names as it was given.
    if len({json.dumps([entry.get("root") or entry["id"], entry.get("parent")]) for entry in models}) > 1:
        raise InputError(
            f"server {endpoint}: has {len(names)} models ({', '.join(names)}); name one, as in "
            f"{endpoint.url}#{names[0]}"
        )
    return models[0]


def _kind(client: Client, endpoint: Endpoint, entry: Mapping[str, Any]) -> tuple[Dialect, dict[str, Any], str | None]:
    """Dialect, details and version: by the name that the server gives itself, else by what only one of them has."""
    owner = str(entry.get("owned_by")).lower()
    if owner != "sglang":
        about = _optional(client, "/version")
        version = about.get("version")
        if owner == "vllm" or version is not None:
            weights = weight_version(client, "vllm")
            details = {} if weights is None else {"weight_version": weights}
            return DIALECTS["vllm"], details, None if version is None else str(version)
    about = _optional(client, "/model_info") or _optional(client, "/get_model_info")
    if owner != "sglang" and "model_path" not in about:
        raise ServerError(
            f"server {endpoint}: calls itself {entry.get('owned_by')!r} and answers like neither vLLM nor SGLang; a "
            "teacher's log-probabilities come from one of these"
        )
    details = {name: about[name] for name in ("model_path", "weight_version") if about.get(name) is not None}
    # The same document holds the server's keys, of which nothing is looked at.
    version = (_optional(client, "/server_info") or _optional(client, "/get_server_info")).get("version")
    return DIALECTS["sglang"], details, None if version is None else str(version)


def weight_version(client: Client, kind: str) -> Any:
    """What a server calls its weights, which whoever replaces them in place may count up; None: it does not tell."""
    paths = {"vllm": ("/weight_info",), "sglang": ("/model_info", "/get_model_info")}[kind]
    for path in paths:
        with suppress(ServerError):
            found = _optional(client, path).get("weight_version")
            if found is not None:
                return found
    return None


def _optional(client: Client, path: str) -> Mapping[str, Any]:
    """The JSON object at a path that not every server has."""
    try:
        found = client.get(path, attempts=HELLO)
    except Refused:
        return {}
    return found if isinstance(found, Mapping) else {}


def local_roots(model: ServedModel) -> list[str]:
    """The directories that the server loaded the model from, as far as they are on this machine too: of an adapter
    its parent's first, which is where its tokenizer is."""
    stated = (model.details.get("model_path"), model.parent.get("root"), model.entry.get("root"))
    return [place for place in stated if isinstance(place, str) and place and Path(place).is_dir()]
