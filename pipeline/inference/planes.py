"""An image of any kind as three colour planes in [0, 1] and an alpha plane, and back to the image's own type."""

from __future__ import annotations

import numpy as np

from kernels_bank.runtime.errors import BadRequestError
from pipeline.images.convert import grey_to_rgb, has_alpha, is_grey

_LARGEST = 2.0  # largest value of a float image: ringing slightly exceeds 1, a [0, 255] scale greatly


def split_alpha(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the colour (h, w, 3) of an image and its alpha (h, w), or None; grey becomes three equal planes.

    Raises:
        BadRequestError: the image is neither grey nor RGB, has a type other than uint8, uint16 or float32, or is a
            float image that is not on the [0, 1] scale.
    """
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise BadRequestError(f"image: uint8, uint16 or float32 is expected, got {image.dtype}")
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (2, 3, 4))):
        raise BadRequestError(
            "image: (h, w) grey, (h, w, 2) grey with alpha, (h, w, 3) RGB or (h, w, 4) RGBA is expected, "
            f"got {image.shape}"
        )
    check_values("image", image)
    alpha = image[..., -1] if has_alpha(image) else None
    if is_grey(image):
        return grey_to_rgb(image if alpha is None else image[..., 0]), alpha
    return image[..., :3], alpha


def check_values(name: str, image: np.ndarray) -> None:
    """Refuse a float image that is not on the [0, 1] scale. Raises BadRequestError."""
    if image.dtype != np.float32:
        return
    lowest, highest = float(image.min()), float(image.max())
    if not (lowest >= -_LARGEST and highest <= _LARGEST):
        worst = lowest if highest <= _LARGEST else highest
        raise BadRequestError(f"{name}: float32 on the scale [0, 1] is expected, found a value of {worst:g}")


def channel_count(image: np.ndarray) -> int:
    """Return 1 for (h, w), C for (h, w, C)."""
    return 1 if image.ndim == 2 else image.shape[2]


def to_float(values: np.ndarray) -> np.ndarray:
    """Convert uint8 or uint16 to float32 in [0, 1]; float32 is returned as it is."""
    if values.dtype == np.float32:
        return values
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def to_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert float32 in [0, 1] to uint8 or uint16, rounded; float32 is returned as it is.

    The conversion works strip by strip, since the image may fill most of the memory.
    """
    if dtype == np.float32:
        return values
    peak = np.float32(np.iinfo(dtype).max)
    out = np.empty(values.shape, dtype)
    for top in range(0, values.shape[0], 256):
        out[top : top + 256] = np.rint(values[top : top + 256] * peak)
    return out
