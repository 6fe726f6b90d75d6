"""XMP packets: the properties that describe the stored pixels, made to fit a result."""

from __future__ import annotations

import re

# A property as an attribute or as an element. Patterns that begin with plain text are the fastest to search for.
_PROPERTY = r'({name}(?<![\w/]{name})(?:\s*=\s*["\']|>\s*))\d+'
_EXTENDED = re.compile(rb"xmpNote:HasExtendedXMP\s*=\s*(\"[^\"]*\"|'[^']*')")
# Up to the packet's end if no end tag follows, since repeating the search from every later start would be quadratic.
_THUMBNAILS = re.compile(rb"(?s)<xmp:Thumbnails\b.*?(</xmp:Thumbnails>|\Z)")


def upright_xmp(packet: bytes) -> bytes:
    """Return a packet with orientation 1, for pixels that were turned; a packet without an orientation is kept."""
    return _with(packet, "tiff:Orientation", 1)


def resized_xmp(packet: bytes, width: int, height: int) -> bytes:
    """Return a packet for a result of this size: corrected sizes, no thumbnail, no reference to a second packet."""
    for name in ("tiff:ImageWidth", "exif:PixelXDimension"):
        packet = _with(packet, name, width)
    for name in ("tiff:ImageLength", "exif:PixelYDimension"):
        packet = _with(packet, name, height)
    packet = _THUMBNAILS.sub(lambda found: b"" if found[1] else found[0], packet)
    return _EXTENDED.sub(b"", packet)


def _with(packet: bytes, name: str, value: int) -> bytes:
    return re.sub(_PROPERTY.format(name=name).encode(), rb"\g<1>%d" % value, packet)
