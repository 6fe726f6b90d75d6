"""Image bytes to pixels: as they are in the file, or as 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import warnings

import cv2
import numpy as np
from PIL import Image

from pipeline.images import BadImageError
from pipeline.images.convert import from_opencv, orient, over_white, to_depth, to_rgb
from pipeline.images.header import read_header
from pipeline.images.photograph import OURS, Photograph


def decode_photograph(data: bytes) -> Photograph:
    """Decode PNG, JPEG, WebP, TIFF or BMP with its depth, channels and colour profile; its EXIF orientation is applied.

    Grey with alpha becomes RGBA; 1-bit and palette images become 8-bit ones.

    Raises:
        BadImageError: not a supported image, animated, CMYK, damaged, too many pixels, or floating point.
    """
    header = read_header(data)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise BadImageError("damaged pixel data")
    if raw.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"pixels of type {raw.dtype}; 8 or 16 bit integers are supported")
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        kind, icc = OURS[str(image.format)], image.info.get("icc_profile")
    return Photograph(np.ascontiguousarray(orient(from_opencv(raw), header.orientation)), icc or None, kind)


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, as a person would see it.

    16-bit values are rounded to 8 bit, grayscale becomes three equal channels, transparent pixels are laid over
    white, and the EXIF orientation is applied.

    Raises:
        BadImageError: as `decode_photograph`.
    """
    pixels = to_depth(decode_photograph(data).pixels, np.dtype(np.uint8))
    has_alpha = pixels.ndim == 3 and pixels.shape[2] == 4
    return over_white(pixels) if has_alpha else to_rgb(pixels)


def decode_tile(data: bytes) -> np.ndarray:
    """Decode a tile that this project wrote, the fast way: (H, W, 3) uint8 RGB.

    Raises:
        BadImageError: damaged data.
    """
    tile = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if tile is None:
        raise BadImageError("damaged pixel data")
    return np.asarray(tile)


def picture_digest(image: np.ndarray) -> str:
    """Return an identity of the pixels of a uint8 image, whatever file they came in."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
