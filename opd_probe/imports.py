"""Large libraries, imported where they are used, and how often Python looks for garbage meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_lasting = False

_SELDOM = 20_000
"""New objects between two searches while much is made that lasts; Python's own number is some hundreds to thousands."""


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


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within the block garbage is looked for less often: a figure is tens of thousands of objects that last until it is
    saved, and a twentieth of its time goes into looking through them."""
    usual = gc.get_threshold()
    if 0 < usual[0] < _SELDOM:
        gc.set_threshold(_SELDOM, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
