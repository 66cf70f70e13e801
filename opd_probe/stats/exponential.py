"""e^x of float64 numbers that are not above 0, in operations that a compiler makes vectors of.

A compiled pass that calls a library for every few exponentials spends more time on the calls than on them: the
registers that hold its sums are saved around each.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST = -708.0
"""Below it e^x is no normal number: 3e-308 stands there in place of less."""

_ROUNDING = 1.5 * 2.0**52
"""Added to a small number it leaves that number, rounded to a whole one, in the last bits of the sum."""

_LN2 = 0.6931471803691238, 1.9082149292705877e-10
"""ln 2 in two parts, the first short enough that its product with a whole number up to 1,100 is exact."""

_FIT = (
    0.5000000000000001,
    0.16666666666666669,
    0.04166666666662413,
    0.008333333333330062,
    0.0013888888917213717,
    0.00019841269863053618,
    2.4801521295954376e-05,
    2.7557268459997064e-06,
    2.7620088445409746e-07,
    2.510038549551032e-08,
)
"""(e^r − 1 − r) / r² as a polynomial through its values at the Chebyshev points of |r| ≤ ln 2 / 2; off by 2e-17."""


def exp_of_nonpositive(x: Tensor) -> Tensor:
    """e^x, float64, for x ≤ 0, to 2e-16 relative; exactly 1 at 0, and e^-708 below −708.

    x = n ln 2 + r with |r| ≤ ln 2 / 2, and e^x = 2ⁿ e^r.
    """
    x = x.clamp(min=_LOWEST)
    whole = x * 1.4426950408889634 + _ROUNDING
    n = whole - _ROUNDING
    r = x - n * _LN2[0] - n * _LN2[1]
    r2 = r * r
    r4 = r2 * r2
    c = _FIT
    fit = (c[0] + c[1] * r + (c[2] + c[3] * r) * r2) + (c[4] + c[5] * r + (c[6] + c[7] * r) * r2) * r4
    fit = fit + (c[8] + c[9] * r) * (r4 * r4)
    power = ((whole.view(torch.int64) << 52) + (1023 << 52)).view(torch.float64)
    return (1.0 + (r + r2 * fit)) * power
