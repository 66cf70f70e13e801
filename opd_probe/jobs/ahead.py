"""The files of the checkpoint that comes next, read and hashed while the one before it is worked on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from threading import Event, Thread

from opd_probe.errors import OpdProbeError
from opd_probe.jobs.memory import HEADROOM, free_memory
from opd_probe.models.digests import weights_digest, weights_files
from opd_probe.types import Checkpoint

_BLOCK = 1 << 23


class ReadAhead:
    """Reads the weights of one checkpoint after the other in a thread, each while its predecessor is at work.

    The thread touches no model, since loading one changes settings of torch and transformers that hold for the whole
    process. What it reads lies in the system's memory for files then, and its digests where :func:`weights_digest`
    looks for them: both save waiting for the disk, and nothing else changes. It says nothing of files that cannot be
    read: whoever needs them does, when it is their turn. Where the memory has no room for the files, nothing is read.

    Args:
        checkpoints: in the order in which they are needed, each with whether it will be loaded, as far as is known;
            of others the digest alone is asked for.
    """

    def __init__(self, checkpoints: Sequence[tuple[Checkpoint, bool]]) -> None:
        self._checkpoints = checkpoints
        self._stopped = Event()
        self._thread: Thread | None = None

    @contextmanager
    def during(self, number: int) -> Iterator[None]:
        """While the block works on a checkpoint, the one after it is read.

        Args:
            number: of the checkpoint at work, in order.
        """
        try:
            if self._thread is not None:  # of this very checkpoint: to read it twice at a time would take longer
                self._thread.join()
                self._thread = None
            if number + 1 < len(self._checkpoints):
                run = copy_context().run  # where digests are remembered
                self._thread = Thread(target=run, args=(self._read, *self._checkpoints[number + 1]), daemon=True)
                self._thread.start()
            yield
        except BaseException:
            self._stopped.set()
            raise

    def _read(self, checkpoint: Checkpoint, whole: bool) -> None:
        if checkpoint.format == "hub":  # which may have to be fetched
            return
        with suppress(OpdProbeError, OSError, RecursionError):
            files, free = weights_files(checkpoint), free_memory("cpu")
            if free is None or sum(file.stat().st_size for file in files) > HEADROOM * free:
                return
            for file in files if whole else ():
                self._into_memory(file)
            if not self._stopped.is_set():
                weights_digest(checkpoint)

    def _into_memory(self, file: Path) -> None:
        block = bytearray(_BLOCK)
        with file.open("rb", buffering=0) as handle:
            while not self._stopped.is_set() and handle.readinto(block):
                pass
