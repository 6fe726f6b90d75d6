"""Arithmetic that gives the same bits on every machine.

NumPy's exp, sin and cos use different routines on different processors, and last bits differ, while +, -, *, / and
sqrt are exactly rounded everywhere (IEEE 754). Kernels use only the latter, so a bank is the same wherever it is built.
"""

from __future__ import annotations

import math

import numpy as np

_LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has trailing zeros, so that n * _LN2_HIGH is exact (Cody & Waite 1980).
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_TAYLOR = [1 / math.factorial(n) for n in range(13)]


def exp(x: np.ndarray) -> np.ndarray:
    """Compute e^x to 2e-16 relative, for float64 x in [-700, 700]; smaller x count as -700."""
    x = np.maximum(x, -700.0)
    n = np.rint(x * _LOG2_E)
    r = x - n * _LN2_HIGH
    r -= n * _LN2_LOW
    p = r * _TAYLOR[12]
    for coefficient in _TAYLOR[11:0:-1]:
        p += coefficient
        p *= r
    p += 1.0
    # 2^n, written directly into the exponent bits.
    p *= ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return p


def log_uniform(uniform: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map uniform numbers in [0, 1) to values in [low, high] whose logarithm is uniform."""
    # The last bit of the C library's logarithm may differ between systems, but twelve digits do not.
    return low * exp(uniform * round(math.log(high / low), 12))
