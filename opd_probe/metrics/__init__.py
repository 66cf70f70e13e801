"""Metrics: trace columns in, metric columns out. numpy only; no torch, no models.

Importing the package registers every metric. The order of the imports is the order of the tables.
"""

from opd_probe.metrics import overlap  # noqa: I001
from opd_probe.metrics import entropy, divergence, mass
from opd_probe.metrics.registry import METRICS, Metric, register
from opd_probe.metrics.states import state_metrics

__all__ = ["METRICS", "Metric", "divergence", "entropy", "mass", "overlap", "register", "state_metrics"]
