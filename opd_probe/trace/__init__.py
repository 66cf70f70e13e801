"""Traces: what a replay leaves behind, and all that every metric reads. pyarrow and numpy only."""

from opd_probe.trace.selection import SelectedTrace
from opd_probe.trace.spool import TraceSpool
from opd_probe.trace.table import Trace, read_trace, rollout_table, write_trace

__all__ = ["SelectedTrace", "Trace", "TraceSpool", "read_trace", "rollout_table", "write_trace"]
