"""One input by its reader, seed and number; and the verdict on what reading it does."""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from opd_probe.errors import OpdProbeError
from opd_probe.plain import visible
from tests.fuzz.contents import rewritten
from tests.fuzz.readers import Reader
from tests.fuzz.trees import Tree, damaged, lay

SECRET = "sk-of-the-environment"
"""The key in the environment. No message may show it, nor the password in the addresses that some inputs hold."""

GROWTH = 1 << 30
"""Bytes by which reading one input may not make the process grow."""

LONGEST = 4_000
"""Characters of a message that still is one line."""


@dataclass(frozen=True)
class Fault:
    """What went wrong with an input.

    Attributes:
        kind: the type of an exception that is none of ours, or a word for anything else.
        where: the innermost place in the package, so that inputs with the same fault can be told.
        text: for the report.
    """

    kind: str
    where: str
    text: str

    @property
    def signature(self) -> str:
        """The same for inputs that show the same fault."""
        return f"{self.kind} at {self.where}"


def case(reader: Reader, seeds: Sequence[Tree], seed: int, number: int) -> Tree:
    """An input: of even numbers a real file damaged, of odd ones a well-formed file of other values."""
    random = Random(f"{reader.name} {seed} {number}")
    tree = random.choice(seeds)
    others = [content for one in seeds for content in one.values() if isinstance(content, bytes)]
    try:
        return damaged(random, tree, others) if number % 2 == 0 else rewritten(random, tree)
    except Exception:  # what was damaged before cannot be taken apart again: cut it off
        return {name: content[:-1] if isinstance(content, bytes) else content for name, content in tree.items()}


def judge(reader: Reader, tree: Tree, scratch: Path) -> tuple[bool, Fault | None]:
    """Read an input in a fresh directory: whether it was read rather than refused, and what was wrong about that."""
    place = scratch / "in"
    shutil.rmtree(place, ignore_errors=True)
    try:
        lay(tree, place)
    except (OSError, ValueError):  # names that no file can have
        return False, None
    before, size = _listing(scratch), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fault, was_read = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(place)
        was_read = True
    except OpdProbeError as error:
        fault = _message_fault(str(error), error)
    except Exception as error:
        fault = Fault(type(error).__name__, _place(error), "".join(traceback.format_exception(error)))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size)
    if fault is None and grown > GROWTH:
        fault = Fault("growth", reader.name, f"grew by {grown / 1e9:.1f} GB")
    if fault is None and not reader.writes and (left := _listing(scratch) ^ before):
        fault = Fault("left behind", reader.name, ", ".join(sorted(left)))
    if left := _emptied(Path(tempfile.gettempdir())):
        fault = fault or Fault("temporary", reader.name, ", ".join(left))
    shutil.rmtree(place, ignore_errors=True)
    return was_read, fault


def _emptied(folder: Path) -> list[str]:
    """What lay in the directory for temporary files, which is gone then; torch's own cache is not looked at."""
    left = [path for path in sorted(folder.iterdir()) if not path.name.startswith("torchinductor")]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()
    return [path.name for path in left]


def _message_fault(text: str, error: BaseException) -> Fault | None:
    wrong = None
    if not text.strip():
        wrong = "empty message"
    elif visible(text) != text:
        wrong = "control characters"
    elif SECRET in text or re.search(r"https?:\S*:hunter2@", text):
        wrong = "secret"
    elif len(text) > LONGEST:
        wrong = "long message"
    return None if wrong is None else Fault(wrong, _place(error), visible(text)[:2_000])


def _place(error: BaseException) -> str:
    """Module and line of the innermost frame in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if re.search(r"/opd_probe/", frame.filename)] or list(frames)
    last = ours[-1]
    return f"{last.filename.rpartition('/opd_probe/')[2]}:{last.lineno}"


def _listing(root: Path) -> set[str]:
    found = set()
    for place, folders, files in os.walk(root):
        found |= {os.path.join(place, name) for name in (*folders, *files)}  # noqa: PTH118
    return found


def smaller(
    reader: Reader, tree: Tree, original: Sequence[Tree], fault: Fault, scratch: Path, tries: int = 150
) -> Tree:
    """An input with the same fault and less in it: files as they were before, or shorter."""
    best, left = dict(tree), tries

    def same(candidate: Tree) -> bool:
        nonlocal left
        left -= 1
        found = judge(reader, candidate, scratch)[1]
        return found is not None and found.signature == fault.signature

    for name in list(best):
        without = {other: content for other, content in best.items() if other != name}
        if left > 0 and without and same(without):
            best = without
    for name, content in list(best.items()):
        was = next((one[name] for one in original if name in one), None)
        if left > 0 and was is not None and was != content and same({**best, name: was}):
            best[name] = was
    for name in list(best):
        content = best[name]
        if isinstance(content, bytes) and not any(one.get(name) == content for one in original):
            piece = max(len(content) // 2, 1)
            while piece >= 1 and left > 0 and len(content) < 200_000:
                start = 0
                while start < len(content) and left > 0:
                    shorter = content[:start] + content[start + piece :]
                    if same({**best, name: shorter}):
                        content = best[name] = shorter
                    else:
                        start += piece
                piece //= 2
    return best
