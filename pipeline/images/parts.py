"""The parts of an image file whose pixels are not yet decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Metadata:
    """Hold the content of an image file besides its pixels."""

    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # a TIFF structure, without the "Exif" prefix
    xmp: bytes | None = None  # an XML packet
    colour: tuple[tuple[bytes, bytes], ...] = ()  # PNG chunks that affect how pixels look: type and content


@dataclass(frozen=True)
class Parts:
    """Hold the properties of an image file, and the file for a decoder."""

    kind: str  # PNG, JPEG, WEBP, BMP, TIFF, AVIF or HEIF
    stored: tuple[int, int]  # height and width as stored
    stream: bytes  # the file, without metadata if the format allows
    metadata: Metadata = field(default_factory=Metadata)
    orientation: int = 1  # EXIF 1..8, still to be applied to the decoded pixels
    grey_alpha: bool = False  # grey with alpha, which OpenCV decodes as RGBA, or for a TIFF without alpha
    grey_key: int | None = None  # the grey value of transparent pixels
    negative: bool = False  # grey with 0 as white, also in the decoder's pixels
    only_pillow: bool = False  # a TIFF that OpenCV does not decode, or not correctly
    alpha: Literal["straight", "premultiplied", "none"] = "straight"  # meaning of the last of 2 or 4 channels
    lossy: bool = False  # compressed with an unknown error: a lossy WebP, AVIF, HEIF
    notes: tuple[str, ...] = ()  # a phrase for each tolerable defect of the file

    @property
    def height(self) -> int:
        """Return the height as displayed."""
        return self.stored[self.orientation >= 5]

    @property
    def width(self) -> int:
        """Return the width as displayed."""
        return self.stored[self.orientation < 5]
