"""Limits for image files and their metadata."""

from __future__ import annotations

# 179 million, Pillow's own limit.
MAX_PIXELS = 178_956_970
MAX_SIDE = 2**20  # OpenCV's
MOST_SCANS = 100  # of a progressive JPEG; even 64 coefficients sent bit by bit need fewer
MOST_ICC = 16 * 2**20
MOST_EXIF = 16 * 2**20
MOST_XMP = 4 * 2**20


def bounded(body: bytes | None, most: int) -> bytes | None:
    """Return the bytes if there are any and no more than `most`; otherwise None."""
    return body if body and len(body) <= most else None


def bounded_exif(body: bytes | None) -> bytes | None:
    """Return an EXIF block without the prefix that it has in a JPEG; None if it is missing or too long."""
    return (bounded(body, MOST_EXIF) or b"").removeprefix(b"Exif\0\0") or None
