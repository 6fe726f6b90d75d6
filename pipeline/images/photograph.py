"""A photograph in memory, and the formats of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Format = Literal["png", "jpeg", "webp", "tiff"]
SUFFIX: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
# The format of a result by Pillow's name for the input's; MPO is how Pillow calls a JPEG with a second picture.
OURS: dict[str, Format] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "TIFF": "tiff", "BMP": "png"}


@dataclass(frozen=True)
class Photograph:
    """The pixels of an image file as a person sees them, and what they mean."""

    pixels: np.ndarray  # (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA; uint8 or uint16
    icc: bytes | None  # colour profile
    kind: Format  # of its file; png for BMP
