"""How much of the gap between student and teacher a run closed (§3.2)."""

from __future__ import annotations

import math
import warnings

from opd_probe.errors import OpdProbeWarning


def gap_recovery(before: float, after: float, teacher: float) -> float:
    """(after − before) / (teacher − before), the share of the accuracy gap that distillation closed.

    Args:
        before, after: the student's accuracy before and after distillation.
        teacher: the teacher's own accuracy on the same problems.

    Returns:
        The share; NaN when student and teacher were equal before, or an accuracy is NaN. Negative with a warning when
        the run moved away from the teacher, or the student was ahead of it.
    """
    gap = teacher - before
    if gap == 0 or any(math.isnan(value) for value in (before, after, teacher)):
        return math.nan
    recovered = (after - before) / gap
    if recovered < 0:
        warnings.warn(
            f"gap recovery is negative ({recovered:.3f}): accuracy went from {before:.3f} to {after:.3f}, the teacher "
            f"has {teacher:.3f}",
            OpdProbeWarning,
            stacklevel=2,
        )
    return recovered
