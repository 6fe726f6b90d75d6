"""The noise level of an image, from the image alone."""

from __future__ import annotations

import numpy as np

# High-pass filter of Daubechies' wavelet with two vanishing moments (db2): blind to constants and ramps.
_HIGH_PASS = np.array([1 - 3**0.5, 3**0.5 - 3, 3 + 3**0.5, -1 - 3**0.5]) / (4 * 2**0.5)
_QUARTILE = 0.6744897501960817  # median of |N(0, 1)|


def estimate_sigma(image: np.ndarray) -> float:
    """Estimate the standard deviation of white Gaussian noise in an image, on the [0, 1] scale.

    Donoho and Johnstone (Biometrika 1994): the diagonal details of the finest wavelet level are noise but for a few
    edges, so their median absolute value is that of the noise. What scikit-image's `estimate_sigma` computes, without
    its optional dependency; chosen over patch eigenvalues and colour differences by measurement (docs/network.md).

    Args:
        image: (H, W, C), integers over their whole range or floating point in [0, 1].

    Returns:
        sigma >= 0, the mean over the channels; 0 for images of fewer than 16 x 16 pixels, which are too few to tell.
    """
    if min(image.shape[:2]) < 16:
        return 0.0
    peak = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    return float(np.mean([_channel_sigma(image[..., c].astype(np.float64) / peak) for c in range(image.shape[2])]))


def _channel_sigma(channel: np.ndarray) -> float:
    details = np.abs(_details(_details(channel).T))
    details = details[details > 1e-9]  # flat areas (clipped, or drawn) say nothing of the noise
    return float(np.median(details)) / _QUARTILE if details.size else 0.0


def _details(rows: np.ndarray) -> np.ndarray:
    """Every second sample of the high-passed columns, mirrored at the ends: (h, w) -> (h // 2 + 1 or so, w)."""
    padded = np.pad(rows, ((2, 3), (0, 0)), mode="symmetric")
    count = (rows.shape[0] + 3) // 2
    return sum(tap * padded[i : i + 2 * count : 2][:count] for i, tap in enumerate(_HIGH_PASS))
