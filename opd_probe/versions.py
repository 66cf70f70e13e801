"""Which software shapes the numbers of a trace."""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("opd-probe", "torch", "transformers", "tokenizers", "peft", "numpy", "pyarrow", "gguf")


def software() -> dict[str, str]:
    """Versions of Python and of the packages that this process found first, by name. Imports none of them."""
    return dict(_software())


@functools.cache
def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
