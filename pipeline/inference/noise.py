"""Estimation of the noise level of an image from the image alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy import ndimage

# High-pass filter of Daubechies' wavelet with two vanishing moments (db2): blind to constants and ramps.
_HIGH_PASS = np.array([1 - 3**0.5, 3**0.5 - 3, 3 + 3**0.5, -1 - 3**0.5]) / (4 * 2**0.5)
_QUARTILE = 0.6744897501960817  # median of |N(0, 1)|
_LEAST = 0.25  # smallest share of informative details
_SIDE, _QUIET = 4, 0.1  # side of a place in details; quantile of the places that count as quiet
_QUIET_OF_NOISE = 0.602  # mean absolute value in the quiet places of N(0, 1)
_TELLING_COLOURS = 0.4  # colour noise relative to all details at which colours count as not smoothed
_LEAST_QUIET = 0.3  # smallest share of noise in the quiet places' variance, since noise can be uneven too


def noise_level(image: np.ndarray, file_error: float) -> float:
    """Return the noise level of an image to pass to a restorer.

    The details of a photograph are noise and, where the picture is sharp, texture. Texture is grey and uneven. So
    differences between colours are noise, and so are details in quiet places, after subtracting what texture adds
    there. The weight of this estimate depends on the colours: if they show little of the whole, a file may have
    smoothed them, and the noise, or the error of an unknown compression, may be grey. A JPEG's errors are as uneven as
    texture: there all details count, in addition to the file's own error.

    Args:
        image: (H, W, C), integers over their whole range or floating point in [0, 1].
        file_error: known RMS error of the image's file, [0, 1] scale; 0 if none is known.

    Returns:
        sigma >= 0 on the [0, 1] scale.
    """
    usual = estimate_sigma(image)
    if file_error > 0 or usual == 0:
        return math.hypot(usual, file_error)
    planes = _planes(image)
    quiet = min(usual, float(np.mean([_quiet_sigma(plane, usual) for plane in planes])))
    # In variance, texture adds to quiet places about as much as the usual place has beyond the quiet ones.
    even = math.sqrt(max(2 * quiet**2 - usual**2, _LEAST_QUIET * quiet**2))
    differences = [_median_sigma(_diagonal(a - b) / 2**0.5) for a, b in pairwise(planes)]
    colours = min(usual, float(np.mean(differences))) if differences else 0.0
    believed = min(1.0, colours / (_TELLING_COLOURS * usual))
    return usual ** (1 - believed) * max(even, colours) ** believed


def estimate_sigma(image: np.ndarray) -> float:
    """Estimate the standard deviation of white Gaussian noise in an image, on the [0, 1] scale.

    Donoho and Johnstone (Biometrika 1994): except for a few edges, the diagonal details of the finest wavelet level are
    noise, so their median absolute value is that of the noise. The result equals scikit-image's `estimate_sigma`, but
    needs no optional dependency and treats flat places differently. A flat place at a limit of the range is ignored,
    since clipping hides noise; a flat place between the limits shows that there is no noise. If nearly everything is at
    a limit (lamps on black, a line on white) only edges remain, and the result is 0. The method was chosen over patch
    eigenvalues and colour differences by measurement (docs/network.md).

    Args:
        image: (H, W, C), integers over their whole range or floating point in [0, 1].

    Returns:
        sigma >= 0, the mean over the channels; 0 for images of fewer than 16 x 16 pixels, which are too small.
    """
    if min(image.shape[:2]) < 16:
        return 0.0
    return float(np.mean([_channel_sigma(plane) for plane in _planes(image)]))


def _planes(image: np.ndarray) -> list[np.ndarray]:
    peak = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    return [image[..., c].astype(np.float64) / peak for c in range(image.shape[2])]


def _channel_sigma(channel: np.ndarray) -> float:
    details = _diagonal(channel)
    low, high = _windows(channel, np.minimum), _windows(channel, np.maximum)
    details[low == high] = 0  # zero except for rounding
    telling = (low < high) | ((low > 0) & (high < 1))
    if telling.mean() < _LEAST:
        return 0.0
    return _median_sigma(details[telling])


def _diagonal(channel: np.ndarray) -> np.ndarray:
    """Return the absolute diagonal details of the finest wavelet level."""
    return np.abs(_details(_details(channel).T)).T


def _median_sigma(details: np.ndarray) -> float:
    return float(np.median(details)) / _QUARTILE


def _quiet_sigma(channel: np.ndarray, usual: float) -> float:
    """Return the noise level in the quiet places, or `usual` if nearly all places are flat."""
    details = _diagonal(channel)
    varied = _windows(channel, np.minimum) < _windows(channel, np.maximum)
    varied = ndimage.minimum_filter(varied, _SIDE)
    if varied.mean() < _LEAST:
        return usual
    return float(np.quantile(ndimage.uniform_filter(details, _SIDE)[varied], _QUIET)) / _QUIET_OF_NOISE


def _windows(channel: np.ndarray, lowest: np.ufunc) -> np.ndarray:
    """Return the minimum or maximum of the 4 x 4 pixels of each detail."""
    for _ in range(2):
        count = (channel.shape[0] + 3) // 2
        padded = np.pad(channel, ((2, 3), (0, 0)), mode="symmetric")[: 2 * count + 2]
        pairs = lowest(padded[::2], padded[1::2])
        channel = lowest(pairs[:-1], pairs[1:]).T
    return channel


def _details(rows: np.ndarray) -> np.ndarray:
    """High-pass the columns, mirrored at the ends, and keep every second sample: (h, w) -> (about h // 2 + 1, w)."""
    padded = np.pad(rows, ((2, 3), (0, 0)), mode="symmetric")
    count = (rows.shape[0] + 3) // 2
    return sum(tap * padded[i : i + 2 * count : 2][:count] for i, tap in enumerate(_HIGH_PASS))
