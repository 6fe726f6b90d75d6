"""How much of the blur is undone: a kernel and a noise level between those of a photograph and those of nothing.

At full strength the network is told what was estimated. Towards 0 the kernel becomes a single point at its own
centroid, so that the picture stays where it is: with that kernel the plain enlargement that the unfoldings start from
explains the photograph already, and only the prior has a say. The told noise level rises on the way. It calms what
a half-shrunken kernel whose transfer function has negative parts would make ring (docs/restore.md).
"""

from __future__ import annotations

import math

import numpy as np

from kernels_bank.runtime.errors import BadRequestError

_CALM = 8 / 255  # noise level that is added at strength 0; measured in docs/restore.md
_LOBES = 3  # of the interpolation of a point between pixels: fewer than a shift has, so that they fit into a kernel


def check_strength(strength: float) -> None:
    """Refuse what is not between 0 and 1. Raises BadRequestError."""
    if not 0 <= strength <= 1:
        raise BadRequestError(f"strength: a number from 0 (plain enlargement) to 1 (full) is expected, got {strength}")


def assumed_kernel(kernel: np.ndarray, strength: float) -> np.ndarray:
    """Return the kernel that a restoration of this strength is made with, (k, k) of sum 1.

    Its transfer function lies on the straight line between that of the kernel and that of a point. For a transfer
    function that is nowhere negative the inverse filter's gain then rises steadily with the strength.

    Args:
        kernel: (k, k), k odd, sum 1.
        strength: 0 to 1; at 1 the kernel itself comes back.
    """
    if strength == 1:
        return kernel
    share = strength * (2 - strength)  # half of a kernel undoes far less than half of its blur
    return (share * kernel + (1 - share) * _point(kernel)).astype(np.float32)


def assumed_sigma(sigma: float, strength: float) -> float:
    """Return the noise level that the network is told of, on the [0, 1] scale: at full strength the photograph's own.

    Args:
        sigma: noise level of the photograph.
        strength: 0 to 1.
    """
    if strength == 1:
        return sigma
    return math.hypot(sigma, _CALM * math.sqrt(1 - strength))


def _point(kernel: np.ndarray) -> np.ndarray:
    """(k, k) of sum 1 with all of the kernel at its centroid; between pixels by Lanczos' interpolation."""
    place = np.arange(kernel.shape[0], dtype=np.float64)
    lines = []
    for axis in (1, 0):
        centroid = float(np.clip((kernel.sum(axis, dtype=np.float64) * place).sum(), place[0], place[-1]))
        distance = place - centroid
        line = np.where(np.abs(distance) < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0)
        lines.append(line / line.sum())
    return lines[0][:, None] * lines[1]
