"""The noise level of an image, from the image alone."""

from __future__ import annotations

import numpy as np

# High-pass filter of Daubechies' wavelet with two vanishing moments (db2): blind to constants and ramps.
_HIGH_PASS = np.array([1 - 3**0.5, 3**0.5 - 3, 3 + 3**0.5, -1 - 3**0.5]) / (4 * 2**0.5)
_QUARTILE = 0.6744897501960817  # median of |N(0, 1)|
_LEAST = 0.25  # share of the details that must tell something


def estimate_sigma(image: np.ndarray) -> float:
    """Estimate the standard deviation of white Gaussian noise in an image, on the [0, 1] scale.

    Donoho and Johnstone (Biometrika 1994): the diagonal details of the finest wavelet level are noise but for a few
    edges, so their median absolute value is that of the noise. What scikit-image's `estimate_sigma` computes, without
    its optional dependency, but for flat places. One colour at a limit of the range says nothing, since clipping hides
    noise; one colour between the limits says that there is none. Where nearly all is at a limit (lamps on black, a
    line on white) what remains is edges, and the answer is 0. Chosen over patch eigenvalues and colour differences by
    measurement (docs/network.md).

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
    details = np.abs(_details(_details(channel).T)).T
    low, high = _windows(channel, np.minimum), _windows(channel, np.maximum)
    details[low == high] = 0  # but for rounding it is
    telling = (low < high) | ((low > 0) & (high < 1))
    if telling.mean() < _LEAST:
        return 0.0
    return float(np.median(details[telling])) / _QUARTILE


def _windows(channel: np.ndarray, lowest: np.ufunc) -> np.ndarray:
    """Lowest or highest of the 4 x 4 pixels that each detail is made of."""
    for _ in range(2):
        count = (channel.shape[0] + 3) // 2
        padded = np.pad(channel, ((2, 3), (0, 0)), mode="symmetric")[: 2 * count + 2]
        pairs = lowest(padded[::2], padded[1::2])
        channel = lowest(pairs[:-1], pairs[1:]).T
    return channel


def _details(rows: np.ndarray) -> np.ndarray:
    """Every second sample of the high-passed columns, mirrored at the ends: (h, w) -> (h // 2 + 1 or so, w)."""
    padded = np.pad(rows, ((2, 3), (0, 0)), mode="symmetric")
    count = (rows.shape[0] + 3) // 2
    return sum(tap * padded[i : i + 2 * count : 2][:count] for i, tap in enumerate(_HIGH_PASS))
