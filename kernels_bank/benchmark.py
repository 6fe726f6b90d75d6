"""The twelve kernels of the evaluation, which never change: four isotropic, four anisotropic, four motion."""

from __future__ import annotations

import math

import numpy as np

from kernels_bank.gaussian import gaussian_kernels
from kernels_bank.motion import sample_motion
from kernels_bank.runtime.errors import BadRequestError

# Standard deviations and angle of the major axis (degrees; x to the right, y down) of kernels 1 ... 8, from the kernel
# set of USRNet's Table 1 (Zhang et al., CVPR 2020), which samples Gaussians at the pixel centres, as we do here.
_GAUSSIANS = (
    (0.7, 0.7, 0.0),
    (1.2, 1.2, 0.0),
    (1.6, 1.6, 0.0),
    (2.0, 2.0, 0.0),
    (math.sqrt(7), math.sqrt(2), 0.0),
    (3.0, math.sqrt(1.5), -36.0),
    (math.sqrt(8), math.sqrt(1.5), 45.0),
    (math.sqrt(7), math.sqrt(5), 52.0),
)
_MOTION_SEED, _MOTION_SIZE = 12, 21


def benchmark_kernels(size: int = 25) -> np.ndarray:
    """Return the twelve evaluation kernels. They are not published ones: the motion kernels are from our generator.

    Args:
        size: side in pixels, odd, at least 21. A larger size only adds zeros around the same kernels.

    Returns:
        (12, size, size) float32, each of sum 1: 1-4 isotropic, 5-8 anisotropic Gaussians, 9-12 motion.

    Raises:
        BadRequestError: the size is even or too small.
    """
    if size < _MOTION_SIZE or size % 2 == 0:
        raise BadRequestError(f"benchmark kernels of side {size}: choose an odd side of at least {_MOTION_SIZE}")
    sigmas = np.array([(along, across) for along, across, _ in _GAUSSIANS])
    angles = np.radians([angle for _, _, angle in _GAUSSIANS])
    axis = np.round(np.stack([np.cos(angles), np.sin(angles)], axis=1), 12)
    gaussians = gaussian_kernels(sigmas, axis, size, integrate=False)
    rng = np.random.Generator(np.random.Philox(key=_MOTION_SEED))
    motion = sample_motion(4, _MOTION_SIZE, rng=rng, extent=(16.0, 18.0))
    margin = (size - _MOTION_SIZE) // 2
    return np.concatenate([gaussians, np.pad(motion, ((0, 0), (margin, margin), (margin, margin)))])
