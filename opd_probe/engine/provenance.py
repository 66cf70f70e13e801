"""What a trace says about the software that made it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("opd-probe", "torch", "transformers", "peft", "numpy", "pyarrow")


def software() -> dict[str, str]:
    """Versions of what shapes the numbers, by package name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
