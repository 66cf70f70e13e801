"""Metrics: trace columns in, metric columns out. numpy only; no torch, no models.

Importing the package registers every metric. The order of the imports is the order of the tables.
"""

from opd_probe.metrics import overlap  # noqa: I001
from opd_probe.metrics import entropy, divergence, mass
from opd_probe.metrics import signal, uncertainty
from opd_probe.metrics.registry import METRICS, Metric, register
from opd_probe.metrics.states import state_metrics
from opd_probe.metrics.whole import TRACE_METRICS, TraceMetric

__all__ = [
    "METRICS",
    "TRACE_METRICS",
    "Metric",
    "TraceMetric",
    "divergence",
    "entropy",
    "mass",
    "overlap",
    "register",
    "signal",
    "state_metrics",
    "uncertainty",
]
