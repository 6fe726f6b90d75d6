"""Image files looked at by their headers alone."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from pipeline.images import BadImageError

# Pillow's own limit, beyond which it refuses to look further: 179 million pixels.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
_FORMATS = {"PNG", "JPEG", "WEBP", "BMP", "TIFF"}
_EXIF_ORIENTATION = 0x0112


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
