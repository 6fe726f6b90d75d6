"""The strength of a restoration: a kernel and a noise level between the estimated ones and those of no blur.

At full strength the network gets the estimated kernel and noise level. Towards 0 the kernel becomes a single point at
its own centroid, so that the picture does not shift. With that kernel the plain enlargement that the unfoldings start
from already explains the photograph, and only the prior acts. The noise level passed to the network rises on the way,
which damps the ringing of a half-shrunken kernel whose transfer function has negative parts (docs/restore.md).
"""

from __future__ import annotations

import math

import numpy as np

_CALM = 8 / 255  # noise level added at strength 0; measured in docs/restore.md
_LOBES = 3  # lobes in the interpolation of a point between pixels: fewer than for a shift, to fit into a kernel


def assumed_kernel(kernel: np.ndarray, strength: float) -> np.ndarray:
    """Return the kernel for a restoration of this strength, (k, k) of sum 1.

    Its transfer function is a linear interpolation between that of the kernel and that of a point. For a transfer
    function that is nowhere negative, the inverse filter's gain then rises steadily with the strength.

    Args:
        kernel: (k, k), k odd, sum 1.
        strength: 0 to 1; 1 returns the kernel itself.
    """
    if strength == 1:
        return kernel
    share = strength * (2 - strength)  # half of a kernel undoes far less than half of the blur
    return (share * kernel + (1 - share) * _point(kernel)).astype(np.float32)


def assumed_sigma(sigma: float, strength: float) -> float:
    """Return the noise level for the network, on the [0, 1] scale: at full strength the photograph's own.

    Args:
        sigma: noise level of the photograph.
        strength: 0 to 1.
    """
    if strength == 1:
        return sigma
    return math.hypot(sigma, _CALM * math.sqrt(1 - strength))


def _point(kernel: np.ndarray) -> np.ndarray:
    """Return (k, k) of sum 1 with all weight at the kernel's centroid, interpolated between pixels by Lanczos."""
    place = np.arange(kernel.shape[0], dtype=np.float64)
    lines = []
    for axis in (1, 0):
        centroid = float(np.clip((kernel.sum(axis, dtype=np.float64) * place).sum(), place[0], place[-1]))
        distance = place - centroid
        line = np.where(np.abs(distance) < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0)
        lines.append(line / line.sum())
    return lines[0][:, None] * lines[1]
