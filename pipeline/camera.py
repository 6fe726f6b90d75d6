"""What a camera and a web site do to an image after the blur: shot noise, 8 bit, JPEG. One image at a time.

`pipeline/degrade.py` has the blur and the decimation, `pipeline/reduction.py` the kinds of reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Subsampling = Literal["4:2:0", "4:4:4"]
_FACTORS = {"4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}
_READ_SHARE = 0.3  # share of the variance at middle grey that is read noise; the rest is shot noise


@dataclass(frozen=True)
class JpegPass:
    """Describe one JPEG compression of a picture."""

    quality: int  # 1 to 100, libjpeg's scale
    subsampling: Subsampling
    shift: tuple[int, int] = (0, 0)  # rows and columns between the picture's corner and the corner of the 8 x 8 grid


def sensor_noise(clean: np.ndarray, sigma: float, random: np.random.Generator, *, shot: bool) -> np.ndarray:
    """Draw noise for an LR image.

    Args:
        clean: (3, h, w) float32 in [0, 1].
        sigma: standard deviation at middle grey, [0, 1] scale.
        random: source of the draws; their number does not depend on the other arguments.
        shot: whether the variance grows with the light, as for photons; otherwise it is the same everywhere.

    Returns:
        (3, h, w) float32.
    """
    white = random.standard_normal(clean.shape, dtype=np.float32)
    if not shot:
        return white * np.float32(sigma)
    variance = _READ_SHARE + (1 - _READ_SHARE) * 2 * clean.clip(0, 1)
    return np.asarray(white * np.float32(sigma) * np.sqrt(variance), np.float32)


def through_jpeg(image: np.ndarray, passes: tuple[JpegPass, ...]) -> np.ndarray:
    """Store an image as JPEG and read it again, once for each pass.

    Args:
        image: (3, h, w) float32 in [0, 1]; it is rounded to 8 bit and clipped first.
        passes: the compressions in order. For a shifted grid the picture is padded above and to the left by mirroring,
            as if it had been cropped after that compression.

    Returns:
        (3, h, w) float32, of 8 bit.
    """
    pixels = np.ascontiguousarray((image * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)[..., ::-1])
    for one in passes:
        down, right = one.shift
        framed = cv2.copyMakeBorder(pixels, (8 - down) % 8, 0, (8 - right) % 8, 0, cv2.BORDER_REFLECT)
        settings = [cv2.IMWRITE_JPEG_QUALITY, one.quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _FACTORS[one.subsampling]]
        ok, data = cv2.imencode(".jpg", framed, settings)
        assert ok, "8-bit BGR of this size is always encoded"
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None, "what was encoded a moment ago"
        pixels = np.asarray(decoded, np.uint8)[(8 - down) % 8 :, (8 - right) % 8 :]
    return np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def to_linear(values: np.ndarray) -> np.ndarray:
    """Convert sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values.clip(0) + 0.055) / 1.055) ** 2.4).astype(values.dtype)


def from_linear(values: np.ndarray) -> np.ndarray:
    """Convert linear light to sRGB values; values outside [0, 1] are clipped, as in a sensor."""
    light = values.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(values.dtype)
