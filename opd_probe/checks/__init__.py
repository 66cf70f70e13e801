"""The checklist before a long job: each check looks at the evidence on a pair of models and says what it found.

Importing the package registers every check. The order of the imports is the order of the checklist.
"""

from opd_probe.checks import tokenizers  # noqa: I001
from opd_probe.checks import templates, rollouts, padding, mask, shift, scores, exactness, signal
from opd_probe.checks.evidence import CheckOptions, Evidence
from opd_probe.checks.gathering import Pair, gather
from opd_probe.checks.registry import CHECKS, Finding, examine

__all__ = [
    "CHECKS",
    "CheckOptions",
    "Evidence",
    "Finding",
    "Pair",
    "exactness",
    "examine",
    "gather",
    "mask",
    "padding",
    "rollouts",
    "scores",
    "shift",
    "signal",
    "templates",
    "tokenizers",
]
