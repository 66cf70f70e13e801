"""``make audit``: known holes in what the environment holds, and the licences of what users install with the package.

Holes are looked up with pip-audit, which asks a service on the network; where that cannot be reached the command says
so and fails, since nothing was checked. Licences are read from the installed packages, without a network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ALLOWED = (
    "Apache", "MIT", "BSD", "ISC", "PSF", "Python Software Foundation", "MPL", "Mozilla Public License", "Unlicense",
    "HPND", "Zlib", "0BSD", "CC0", "Public Domain", "NVIDIA",
)  # fmt: skip
"""Words of licences that ask for no more than to be named. NVIDIA's own ones are of the libraries that torch brings."""

REFUSED = ("GPL", "AGPL", "SSPL", "Commons Clause", "Business Source")
"""Words of licences that ask for more, LGPL among them."""


def main() -> int:
    """Both checks; 0 when both were made and found nothing."""
    refused = list(licence_problems("opd-probe"))
    for line in refused:
        print(f"licence: {line}")
    verdict = "each allowed" if not refused else f"{len(refused)} to look at"
    print(f"licences: {verdict}")
    holes = _holes(sys.argv[1:] or [sys.executable, "-m", "pip_audit"])
    return 1 if refused or holes else 0


def licence_problems(root: str) -> Iterator[str]:
    """Packages that come with one, whose licence is none of those allowed."""
    for package in sorted(needed(root)):
        try:
            found = licence_of(distribution(package))
        except PackageNotFoundError:
            continue  # of another system
        allowed = any(word.lower() in found.lower() for word in ALLOWED)
        if not allowed or any(word in found for word in REFUSED):
            yield f"{package}: {found[:120] or 'says nothing'}"


def needed(root: str) -> set[str]:
    """A package, and what it needs, directly or not; what its extras need too, of which a user installs some."""
    found: set[str] = set()
    waiting = [(root, True)]
    while waiting:
        name, extras = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            stated = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for line in stated:
            match = re.match(r"[A-Za-z0-9._-]+", line)
            extra = re.search(r"extra == ['\"](\w+)['\"]", line)
            if match and (extra is None or (extras and extra[1] not in ("dev", "docs", "loggers"))):
                waiting.append((re.sub(r"[-_.]+", "-", match[0]).lower(), False))
    return found - {root}


def licence_of(package: Distribution) -> str:
    """What a package says its licence is: the expression, the classifiers, or the field."""
    metadata = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classes = [one.rpartition("::")[2].strip() for one in metadata.get_all("Classifier") or [] if "License ::" in one]
    field = " ".join(str(metadata.get("License") or "").split())[:200]
    return "; ".join([*classes, field]).strip("; ")


def _holes(pip_audit: Sequence[str]) -> bool:
    """Whether there are known holes, or it is not known."""
    place = str(Path(str(distribution("torch").locate_file(""))).resolve())
    command = [*pip_audit, "--progress-spinner", "off", "--format", "json", "--path", place]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1] if "done" in locals() else "it is not installed"
        print(f"holes: not looked for, pip-audit cannot be run or its service not be reached from here ({last[:200]})")
        return True
    known = [one for one in packages if "skip_reason" not in one]
    for one in known:
        for hole in one["vulns"]:
            mended = ", ".join(hole["fix_versions"]) or "none"
            print(f"hole: {one['name']} {one['version']}: {hole['id']}, mended in {mended}")
    found = sum(len(one["vulns"]) for one in known)
    if not known:
        print(f"holes: not looked for, the service of pip-audit knows none of the {len(packages)} packages from here")
        return True
    unknown = ", ".join(one["name"] for one in packages if "skip_reason" in one) or "none"
    print(f"holes: {found} in {len(known)} packages; not looked for in those that the service does not know: {unknown}")
    return found > 0


if __name__ == "__main__":
    sys.exit(main())
