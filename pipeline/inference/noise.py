"""The noise level of an image, from the image alone."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_PATCH = 7
_MAX_PATCHES = 60_000
_ROUNDING = 1 / (255**2 * 12)  # variance of rounding to 8 bit, which the network does not count as noise


def estimate_sigma(image: np.ndarray) -> float:
    """Standard deviation of white Gaussian noise in an 8-bit image, on the [0, 1] scale.

    Chen, Zhu and Heng (ICCV 2015): patches of natural images lie near a subspace, so the small eigenvalues of their
    covariance are the noise's; the largest group of them whose mean is its median gives the variance.

    Args:
        image: (H, W, 3) uint8, at least 16 x 16.

    Returns:
        sigma >= 0; 0 for images smaller than 16 x 16, which hold too few patches to tell.
    """
    if min(image.shape[:2]) < 16:
        return 0.0
    windows = sliding_window_view(image, (_PATCH, _PATCH), axis=(0, 1))
    step = max(1, int(np.sqrt(windows.shape[0] * windows.shape[1] * 3 / _MAX_PATCHES)))
    patches = windows[::step, ::step].reshape(-1, _PATCH * _PATCH).astype(np.float64) / 255
    values = np.linalg.eigvalsh(np.cov(patches, rowvar=False))  # ascending
    for count in range(len(values), 0, -1):
        group = values[:count]
        if np.count_nonzero(group > group.mean()) >= np.count_nonzero(group < group.mean()):
            break
    return float(np.sqrt(max(float(group.mean()) - _ROUNDING, 0.0)))
