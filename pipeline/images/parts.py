"""An image file taken apart, its pixels not yet decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Metadata:
    """Hold what an image file holds beside its pixels."""

    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # a TIFF structure, without the "Exif" before it
    xmp: bytes | None = None  # an XML packet
    colour: tuple[tuple[bytes, bytes], ...] = ()  # PNG chunks that say how pixels look: type and content


@dataclass(frozen=True)
class Parts:
    """Hold what an image file says of itself, and the file for a decoder."""

    kind: str  # PNG, JPEG, WEBP, BMP, TIFF, AVIF or HEIF
    stored: tuple[int, int]  # height and width as stored
    stream: bytes  # the file, without metadata where the format allows
    metadata: Metadata = field(default_factory=Metadata)
    orientation: int = 1  # EXIF 1..8: what the decoded pixels still need
    grey_alpha: bool = False  # grey with alpha; OpenCV gives it as RGBA, of a TIFF without alpha
    grey_key: int | None = None  # the grey value that stands for transparent pixels
    negative: bool = False  # grey that counts from white, also in the decoder's pixels
    only_pillow: bool = False  # a TIFF of which OpenCV gives no pixels, or others
    alpha: Literal["straight", "premultiplied", "none"] = "straight"  # what the last of 2 or 4 channels is
    lossy: bool = False  # its pixels are off by an error that it does not tell: a WebP of that kind, AVIF, HEIF
    notes: tuple[str, ...] = ()  # what is wrong with the file and can be borne, a phrase each

    @property
    def height(self) -> int:
        """Return the height as displayed."""
        return self.stored[self.orientation >= 5]

    @property
    def width(self) -> int:
        """Return the width as displayed."""
        return self.stored[self.orientation < 5]
