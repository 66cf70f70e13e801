"""Large libraries, imported where they are used."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_lasting = False


def let_imports_last() -> None:
    """From now on, what is imported in :func:`uncollected` blocks is never looked at for garbage again, not even at the
    end of the process: for a process that is one command."""
    global _lasting
    _lasting = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block nobody looks for garbage: imports make none, and the search is up to a tenth of their time."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()
        if _lasting:
            gc.freeze()
