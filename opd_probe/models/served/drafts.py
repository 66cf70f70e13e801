"""Sampled responses on disk as they come, so that an interrupted job draws only what is missing."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from opd_probe.errors import OutputError
from opd_probe.models.served.dialects import Drawn
from opd_probe.texts import check_ordinary, parse_json, read_text


class Drafts:
    """Responses by the id of their rollout, in a file of one JSON line each behind a line with the job's key.

    Args:
        path: the file, made with the first response; None keeps nothing.
        key: all that decides the draws. A file under another key is started afresh.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.known: dict[str, Drawn] = {} if path is None else _read(path, key)
        if self.known:
            self._begin(self.known)  # without a last line that was cut off

    def keep(self, rollout_id: str, drawn: Drawn) -> None:
        """Add a response.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._path is None or rollout_id in self.known:
            return
        if not self.known:
            self._begin({})
        self.known[rollout_id] = drawn
        self._write("a", [_line(rollout_id, drawn)])

    def _begin(self, known: dict[str, Drawn]) -> None:
        lines = [json.dumps({"key": self._key}), *(_line(name, drawn) for name, drawn in known.items())]
        self._write("w", lines)

    def _write(self, mode: str, lines: list[str]) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                check_ordinary(self._path)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            if len(self.known) <= 1 and self._path.is_file():  # it holds nothing that is whole
                with suppress(OSError):
                    self._path.unlink()
            raise OutputError(
                f"samples {self._path}: cannot be written ({error.strerror}); choose another place with --out"
            ) from None


def _line(rollout_id: str, drawn: Drawn) -> str:
    return json.dumps({"id": rollout_id, **asdict(drawn)})


def _read(path: Path, key: str) -> dict[str, Drawn]:
    """What a file holds under a key, up to the first line that is not whole."""
    found: dict[str, Drawn] = {}
    try:
        first, *lines = read_text(path).splitlines()
        if parse_json(first) != {"key": key}:
            return {}
        for line in lines:
            row = parse_json(line)
            drawn = Drawn([int(token) for token in row["ids"]], [float(p) for p in row["logprobs"]], row["reason"])
            found[str(row["id"])] = drawn
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        pass
    return found
