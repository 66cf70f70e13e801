"""Small trees of files, what stands in place of a file, and damage to both."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from random import Random

from opd_probe.trace import digest as trace_digest


class Odd(Enum):
    """What may stand where a file is expected."""

    DIRECTORY = "directory"
    PIPE = "pipe"
    LOOP = "loop"
    NOWHERE = "nowhere"
    ABOVE = "above"


Tree = dict[str, bytes | Odd]
"""By relative path, what is there."""

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def tree_of(root: Path) -> Tree:
    """What lies below a directory, or a file alone."""
    if root.is_file():
        return {root.name: root.read_bytes()}
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def lay(tree: Mapping[str, bytes | Odd], root: Path) -> None:
    """Put a tree below a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is Odd.DIRECTORY:
            path.mkdir(exist_ok=True)
        elif content is Odd.PIPE:
            os.mkfifo(path)
        else:
            target = {Odd.LOOP: path.name, Odd.NOWHERE: "not-there", Odd.ABOVE: ".."}[content]
            path.symlink_to(target)


def damaged(random: Random, tree: Tree, others: Sequence[bytes]) -> Tree:
    """A tree with one to three of its files damaged; their bytes more often than their being there."""
    kept = dict(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(list(kept)) if kept else "x"
        held = kept.get(name, b"")
        if random.random() < 0.12 or not isinstance(held, bytes):
            _misplaced(random, kept, name, held)
        else:
            kept[name] = damaged_file(random, name, held, others)
    return kept


def _misplaced(random: Random, tree: Tree, name: str, held: bytes | Odd) -> None:
    how = random.randrange(6)
    if how == 0:
        tree.pop(name, None)
    elif how == 1 and tree:
        tree[name] = random.choice(list(tree.values()))
    elif how == 2:
        stem, dot, suffix = name.rpartition(".")
        tree[f"{stem}-2{dot}{suffix}" if dot else f"{name}2"] = held
    else:
        tree[name] = random.choice(list(Odd))


def damaged_file(random: Random, name: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """A file's bytes damaged; of files with a checksum mostly so that it agrees with the damage."""
    if content.startswith(b"PK") and random.random() < 0.8:
        with suppress(
            zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, zlib.error
        ):  # damaged before
            return _inside_zip(random, content, others)
    harmed = damaged_bytes(random, content, others)
    if "tfevents" in name and random.random() < 0.8:
        return _inside_records(random, content, others)
    if content.startswith(b"PAR1") and random.random() < 0.8:
        return with_digest(harmed)
    return harmed


def damaged_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes with one to four kinds of damage."""
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice(_DAMAGE)(random, content, others)
    return content


def _flipped(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    keep = random.choice((0, 1, 4, 7, 8, 12, len(content) - 1, random.randint(0, max(len(content), 1))))
    return content[:keep]


def _without(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    start = random.randint(0, len(content))
    return content[:start] + content[start + random.choice((1, 2, 8, 100)) :]


def _twice(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    start = random.randint(0, len(content))
    piece = content[start : start + random.choice((1, 8, 64, 1000))]
    return content[:start] + piece * random.choice((2, 2, 50)) + content[start + len(piece) :]


def _inserted(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    start = random.randint(0, len(content))
    piece = random.choice(
        (random.randbytes(4), b"\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\r", b"\x1b[")
    )
    return content[:start] + piece + content[start:]


def _number(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """A number of 1 to 8 bytes put over what is there."""
    size = random.choice((1, 2, 4, 4, 8, 8))
    start = random.randint(0, max(len(content) - size, 0))
    number = random.choice(_NUMBERS) & (256**size - 1)
    return content[:start] + number.to_bytes(size, random.choice(("little", "big"))) + content[start + size :]


def _digits(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Another number in place of one that is written out."""
    places = [place for place, byte in enumerate(content[:20_000]) if 48 <= byte <= 57]
    if not places:
        return _number(random, content, others)
    start = stop = random.choice(places)
    while stop < len(content) and 48 <= content[stop] <= 57:
        stop += 1
    return content[:start] + str(random.choice(_NUMBERS)).encode() + content[stop:]


def _spliced(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others) if others else b""
    return content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]


def _encoded(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    text = content.decode("latin-1")
    return random.choice(
        (text.encode("utf-16"), b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), b"\n" + content)
    )


_DAMAGE: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flipped, _flipped, _flipped, _cut, _without, _twice, _inserted, _number, _number, _digits, _digits, _spliced, _encoded,  # noqa: E501
)  # fmt: skip


def _inside_zip(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A zip file, such as torch writes, with one of its members damaged and its sums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    chosen = random.choice([*members, *[name for name in members if name.endswith(".pkl")] * 3])
    members[chosen] = damaged_bytes(random, members[chosen], others)
    if random.random() < 0.05:
        members.pop(random.choice(list(members)))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held)
    return made.getvalue()


def _inside_records(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """An event file with its records damaged and their sums right."""
    records, place = [], 0
    while place + 12 <= len(content):
        (length,) = struct.unpack("<Q", content[place : place + 8])
        records.append(content[place + 12 : place + 12 + length])
        place += 16 + length
    if records:
        chosen = random.randrange(len(records))
        records[chosen] = damaged_bytes(random, records[chosen], others)
    return b"".join(framed(record) for record in records)


def framed(record: bytes) -> bytes:
    """A record as event files hold it."""
    length = struct.pack("<Q", len(record))
    return length + _masked(length) + record + _masked(record)


def _masked(data: bytes) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))


def with_digest(content: bytes) -> bytes:
    """A Parquet file whose own digest, if it holds one, agrees with its bytes: what stands behind it is looked at."""
    start = content.find(b"opd-probe sha256 ")
    if start < 0:
        return content
    file = io.BytesIO(content)
    digest = trace_digest._sha256(file, range(start, start + trace_digest._RECORD_SIZE))
    record = f"opd-probe sha256 {digest}\n".encode()
    return content[:start] + record + content[start + len(record) :]
