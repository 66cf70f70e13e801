"""SQLite databases of others, read and left as they are."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from opd_probe.errors import InputError
from opd_probe.runs.training_logs.form import LogFormat, Row, starts_with
from opd_probe.texts import real_path

MAGIC = b"SQLite format 3\0"
_WAIT = 0.5
"""Seconds for which a writer may hold the database."""


def has_table(path: Path, table: str, columns: set[str]) -> bool:
    """Whether a file is a database with a table of these columns; False too where it cannot be read."""
    if not starts_with(path, MAGIC):
        return False
    try:
        with database(path) as connection:
            found = {str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")}
    except (OSError, ValueError):
        return False
    return columns <= found


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing, neither into the database nor beside it.

    What a writer has put into the log beside it (``-wal``) counts. Where SQLite would have to make a file to read that,
    or to take back a transaction that was cut off, a copy is read.

    Raises:
        ValueError: broken, or held by a writer.
    """
    try:
        with TemporaryDirectory() as place:
            beside = [Path(f"{path}{end}") for end in ("-wal", "-journal")]
            pending = [file for file in beside if file.is_file() and file.stat().st_size]
            if pending:
                copy = Path(place) / "log.db"
                for file in (path, *pending):
                    shutil.copyfile(file, str(copy) + str(file).removeprefix(str(path)))
                address = f"file:{quote(str(copy))}"
            else:
                # Without a log beside it a database in that mode is whole, and reading it as ever would make one.
                address = f"file:{quote(str(real_path(path)))}?mode=ro" + ("&immutable=1" if _logs_ahead(path) else "")
            with closing(sqlite3.connect(address, uri=True, timeout=_WAIT)) as connection:
                connection.text_factory = lambda held: held.decode(errors="replace")
                yield connection
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise ValueError("a writer holds the database; wait until it ends, or read a copy") from None
        raise ValueError(f"a broken database: {error}") from None


def _logs_ahead(path: Path) -> bool:
    """Whether changes go into a file of their own first, for those who write or for those who read."""
    with path.open("rb") as file:
        return b"\2" in file.read(20)[18:20]


def _refused(path: Path, _run: str) -> Iterator[Row]:
    with database(path) as connection:
        tables = [str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    held = ", ".join(tables[:8]) or "none"
    raise InputError(f"a database with the tables {held}; expected trackio's or mlflow's, with metrics")


OTHER = LogFormat("SQLite", "", lambda path: starts_with(path, MAGIC), _refused, several=True)
"""Of a database that none of them wrote, or that is broken."""
