"""A photograph in memory: its pixels, its metadata, and the format of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from pipeline.images.parts import Metadata

Format = Literal["png", "jpeg", "webp", "tiff"]
Codec = Literal["png", "webp", "raw"]  # of training tiles
SUFFIX: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
# The format of a result by that of the input; unsupported formats become PNG.
FORMAT_OF_KIND: dict[str, Format] = {
    "PNG": "png",
    "JPEG": "jpeg",
    "WEBP": "webp",
    "TIFF": "tiff",
    **dict.fromkeys(("BMP", "AVIF", "HEIF"), "png"),
}
# The supported suffixes, and the format of a result that keeps the input's format.
FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".png": "png",
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
    ".webp": "webp",
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".bmp", ".dib", ".avif", ".heic", ".heif", ".hif"), "png"),
}


class JpegCoding(NamedTuple):
    """Hold the compression settings of a JPEG."""

    tables: list[list[int]]  # quantisation tables in natural order
    subsampling: int  # Pillow's number: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0


@dataclass(frozen=True)
class Photograph:
    """Hold the pixels of an image file in displayed orientation, and their metadata."""

    pixels: np.ndarray  # (h, w) grey, or (h, w, 2) with alpha, (h, w, 3) RGB or (h, w, 4) RGBA; uint8 or uint16
    kind: Format  # format of its file; png if results cannot have it
    metadata: Metadata = field(default_factory=Metadata)
    jpeg: JpegCoding | None = None
    file_error: float = 0.0  # RMS error from this and earlier compressions, [0, 1] scale
    notes: tuple[str, ...] = ()  # phrases about the file for the user
