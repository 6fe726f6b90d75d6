"""Image bytes to pixels and back. OpenCV's BGR order stops in this file: everything outside is RGB."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's own limit, beyond which it refuses to look further: 179 million pixels.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
_FORMATS = {"PNG", "JPEG", "WEBP", "BMP", "TIFF"}
_EXIF_ORIENTATION = 0x0112
# Of the lossless codecs measured (docs/data.md), the one that decodes fastest among the PNGs below 0.6 of the raw size.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


class BadImageError(ValueError):
    """An image that cannot be used; the text is the reason, without the file's name."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded; sizes are as displayed."""

    height: int
    width: int
    orientation: int  # EXIF 1..8: what the decoded pixels still need


def read_header(data: bytes) -> Header:
    """Check an encoded image by its header alone, so that a decompression bomb costs nothing.

    Raises:
        BadImageError: not an image of a supported format, CMYK, animated, or more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            kind, mode, frames = image.format, image.mode, getattr(image, "n_frames", 1)
            width, height = image.size
            # Of a PNG without it, Pillow decodes all pixels to look for EXIF data behind them.
            exif = image.getexif() if kind != "PNG" or b"eXIf" in data else Image.Image.getexif(image)
            # Of a TIFF, Pillow's size and OpenCV's pixels are upright already.
            orientation = int(exif.get(_EXIF_ORIENTATION, 1)) if kind != "TIFF" else 1
    except Image.DecompressionBombError as error:
        raise BadImageError(f"more than {MAX_PIXELS} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadImageError("not a readable image") from error
    if kind not in _FORMATS and kind != "MPO":  # MPO is how Pillow calls a JPEG with a second picture
        raise BadImageError(f"{kind} is not supported; use PNG, JPEG, WebP, BMP or TIFF")
    if mode in {"CMYK", "YCCK"}:
        raise BadImageError("CMYK colours; convert the file to RGB")
    if frames > 1 and kind != "MPO":
        raise BadImageError(f"animated or multi-page ({frames} frames)")
    if orientation in {5, 6, 7, 8}:
        width, height = height, width
    return Header(height, width, orientation if 1 <= orientation <= 8 else 1)


def decode_image(data: bytes) -> np.ndarray:
    """Decode PNG, JPEG, WebP, BMP or TIFF to (H, W, 3) uint8 RGB, as a person would see it.

    16-bit values are rounded to 8 bit, grayscale becomes three equal channels, transparent pixels are laid over
    white, and the EXIF orientation is applied.

    Raises:
        BadImageError: as `read_header`, or the pixel data is damaged or of another type (floating point).
    """
    header = read_header(data)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise BadImageError("damaged pixel data")
    if raw.dtype == np.uint16:
        raw = ((raw.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if raw.dtype != np.uint8:
        raise BadImageError(f"pixels of type {raw.dtype}; 8 or 16 bit integers are supported")
    return np.ascontiguousarray(orient(_to_rgb(raw), header.orientation))


def decode_tile(data: bytes) -> np.ndarray:
    """The fast path for tiles this project wrote: (H, W, 3) uint8 RGB.

    Raises:
        BadImageError: damaged data.
    """
    tile = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if tile is None:
        raise BadImageError("damaged pixel data")
    return np.asarray(tile)


def encode_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey, uint8 or uint16, as PNG; equal pixels give equal bytes."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    ok, encoded = cv2.imencode(".png", np.ascontiguousarray(bgr), _PNG)
    if not ok:
        raise BadImageError(f"an array of shape {image.shape} and type {image.dtype} cannot be written as PNG")
    return encoded.tobytes()


def picture_digest(image: np.ndarray) -> str:
    """Identity of the pixels of a uint8 image, whatever file they came in."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _to_rgb(raw: np.ndarray) -> np.ndarray:
    if raw.ndim == 2:
        return np.repeat(raw[..., None], 3, axis=2)
    if raw.shape[2] == 3:
        return raw[..., ::-1]
    if raw.shape[2] == 2:  # grey + alpha
        raw = np.concatenate([np.repeat(raw[..., :1], 3, axis=2), raw[..., 1:]], axis=2)
    if raw.shape[2] != 4:
        raise BadImageError(f"{raw.shape[2]} channels")
    colour, alpha = raw[..., 2::-1].astype(np.uint32), raw[..., 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


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
            return image.transpose(1, 0, 2)
        case 6:
            return np.rot90(image, -1)
        case 7:
            return image[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            return np.rot90(image, 1)
    return image
