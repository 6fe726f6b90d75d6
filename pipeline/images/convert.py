"""Pixel conversions: depth, grey to RGB, alpha over white, orientation, OpenCV's channel order."""

from __future__ import annotations

import numpy as np

from pipeline.images import BadImageError


def luma(image: np.ndarray) -> np.ndarray:
    """Compute (h, w) of an RGB image (h, w, 3) float32 (BT.601), on its scale."""
    return np.asarray(image @ np.array([0.299, 0.587, 0.114], np.float32))


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Return (h, w) grey pixels as (h, w, 3) with three equal channels."""
    return np.repeat(grey[..., None], 3, axis=2)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return grey, grey with alpha, RGB or RGBA pixels as (h, w, 3) RGB; alpha is left out."""
    if pixels.ndim == 2:
        return grey_to_rgb(pixels)
    return grey_to_rgb(pixels[..., 0]) if pixels.shape[2] == 2 else np.ascontiguousarray(pixels[..., :3])


def has_alpha(pixels: np.ndarray) -> bool:
    """Return whether the last of the channels is alpha."""
    return pixels.ndim == 3 and pixels.shape[2] in (2, 4)


def is_grey(pixels: np.ndarray) -> bool:
    """Return whether pixels are grey, with or without alpha."""
    return pixels.ndim == 2 or pixels.shape[2] == 2


def to_depth(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert 8 bit to 16 (times 257) or 16 to 8 (rounded); pixels of this type are returned unchanged."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.uint16:
        return pixels.astype(np.uint16) * 257
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def straight_alpha(pixels: np.ndarray) -> np.ndarray:
    """Undo the multiplication of grey or RGB pixels by their alpha; fully transparent pixels are black."""
    most = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:]
    straight = (colour * most + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([np.where(alpha, straight.clip(max=most), 0).astype(pixels.dtype), alpha], axis=2)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels with any channels as (h, w, 3) RGB; transparent pixels are blended over white."""
    rgb = to_rgb(pixels)
    if not has_alpha(pixels):
        return rgb
    colour, alpha = rgb.astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def from_opencv(raw: np.ndarray) -> np.ndarray:
    """Return the pixels of OpenCV's decoder as grey, grey with alpha, RGB or RGBA.

    Raises:
        BadImageError: unsupported number of channels.
    """
    if raw.ndim == 2 or raw.shape[2] == 1:
        return raw.reshape(raw.shape[:2])
    if raw.shape[2] == 2:
        return raw
    if raw.shape[2] not in (3, 4):
        raise BadImageError(f"{raw.shape[2]} channels")
    return _swap_red_and_blue(raw)


def to_opencv(pixels: np.ndarray) -> np.ndarray:
    """Return grey, RGB or RGBA pixels in OpenCV's channel order; grey with alpha as BGRA."""
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = np.dstack([to_rgb(pixels), pixels[..., 1]])
    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        return pixels
    return _swap_red_and_blue(pixels)


def _swap_red_and_blue(pixels: np.ndarray) -> np.ndarray:
    # OpenCV's own conversion is not used, since restoring from the registry loads this file and needs no OpenCV.
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's rotation or mirroring (EXIF 2.3, tag Orientation)."""
    match orientation:
        case 2:
            return image[:, ::-1]
        case 3:
            return image[::-1, ::-1]
        case 4:
            return image[::-1]
        case 5:
            return image.transpose(1, 0, 2) if image.ndim == 3 else image.T
        case 6:
            return np.rot90(image, -1)
        case 7:
            return image[::-1, ::-1].transpose(1, 0, 2) if image.ndim == 3 else image[::-1, ::-1].T
        case 8:
            return np.rot90(image, 1)
    return image
