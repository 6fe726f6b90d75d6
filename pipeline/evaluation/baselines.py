"""Upsampling without a model: the floor that every method is compared with."""

from __future__ import annotations

import cv2
import numpy as np

_CUBIC = -0.75  # the free parameter of the cubic convolution kernel, as in OpenCV


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic upsampling aligned to the decimation phase.

    Decimation keeps the upper-left pixel of every s x s block, so LR pixel i lies on HR pixel s*i and is kept as it
    is; the s-1 pixels between two of them are interpolated (cubic convolution, Keys 1981; edges replicated).

    Args:
        lr: (h, w, 3) or (h, w), uint8 or floating point.
        scale: s >= 1.

    Returns:
        (s*h, s*w, ...) float32 on the scale of `lr`, not clipped.
    """
    image = lr.astype(np.float32)
    return _upsample_rows(_upsample_rows(image, scale).swapaxes(0, 1), scale).swapaxes(0, 1)


def bicubic_unaligned(lr: np.ndarray, scale: int) -> np.ndarray:
    """Plain `cv2.resize`: its grid is centred on blocks, so it is (s-1)/2 pixels off after decimation.

    Kept under its own name because published tables have it. Arguments and result as `bicubic`.
    """
    height, width = lr.shape[:2]
    size = (scale * width, scale * height)
    return np.asarray(cv2.resize(lr.astype(np.float32), size, interpolation=cv2.INTER_CUBIC))


def _upsample_rows(image: np.ndarray, scale: int) -> np.ndarray:
    height = image.shape[0]
    padded = np.concatenate([image[:1], image, image[-1:], image[-1:]])
    result = np.empty((height * scale, *image.shape[1:]), np.float32)
    for phase in range(scale):
        weights = _keys(phase / scale - np.arange(-1, 3))
        result[phase::scale] = sum(float(weight) * padded[tap : tap + height] for tap, weight in enumerate(weights))
    return result


def _keys(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel; its values at one phase sum to 1."""
    d, a = np.abs(distance), _CUBIC
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
