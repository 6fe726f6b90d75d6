"""A photograph in memory: its pixels, its metadata, and the format of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from pipeline.images.parts import Metadata

Format = Literal["png", "jpeg", "webp", "tiff"]
Codec = Literal["png", "webp", "raw"]  # of training tiles
SUFFIX: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
# The format of a result by the input's; those without one of their own become PNG.
FORMAT_OF_KIND: dict[str, Format] = {
    "PNG": "png",
    "JPEG": "jpeg",
    "WEBP": "webp",
    "TIFF": "tiff",
    **dict.fromkeys(("BMP", "AVIF", "HEIF"), "png"),
}
# The suffixes that are read, and the format of a result that keeps the input's.
FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".png": "png",
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
    ".webp": "webp",
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".bmp", ".dib", ".avif", ".heic", ".heif", ".hif"), "png"),
}


class JpegCoding(NamedTuple):
    """Say how coarsely a JPEG was written."""

    tables: list[list[int]]  # quantisation tables in natural order
    subsampling: int  # Pillow's number: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0


@dataclass(frozen=True)
class Photograph:
    """Hold the pixels of an image file as a person sees them, and what belongs to them."""

    pixels: np.ndarray  # (h, w) grey, or (h, w, 2) with alpha, (h, w, 3) RGB or (h, w, 4) RGBA; uint8 or uint16
    kind: Format  # of its file; png where results cannot have the input's
    metadata: Metadata = field(default_factory=Metadata)
    jpeg: JpegCoding | None = None
    file_error: float = 0.0  # RMS on the [0, 1] scale by which codings, this one or earlier, left the pixels off
    notes: tuple[str, ...] = ()  # what is worth telling of the file, a phrase each
