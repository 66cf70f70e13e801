"""Foreign loaders, made to speak in one line or not at all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from opd_probe.errors import InputError, OpdProbeError, OutOfMemoryError, is_panic

_LONGEST = 240


def brief(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@contextmanager
def one_line(what: str, failed: str = "cannot be loaded") -> Iterator[None]:
    """Turn whatever a loader raises on bad files into one line that begins with ``what`` and says what ``failed``."""
    try:
        yield
    except OpdProbeError:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemoryError(
            f"{what}: out of memory while loading; try --dtype bfloat16 or another --device"
        ) from None
    except BaseException as error:  # the loaders' errors have no common root
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(f"{what}: {failed} ({type(error).__name__}: {brief(error)})") from None


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """No progress bars and no advice from the loaders: what matters is checked and said by us.

    Yields the warnings that were held back.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as held:
            warnings.simplefilter("always")
            yield held
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
